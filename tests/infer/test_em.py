"""EM: what rises, what it starts from, what it survives, and what it does not depend on."""

from __future__ import annotations

import os
import signal
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm, poisson

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Bernoulli, Categorical, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free
from ppl_gen.errors import FitError
from ppl_gen.infer import engine
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.em import run_em
from ppl_gen.infer.enumeration import log_marginal
from ppl_gen.infer.ordering import exchangeable
from ppl_gen.infer.restarts import Restarts
from ppl_gen.infer.run import Run
from ppl_gen.infer.starts import Starts
from ppl_gen.infer.status import Status
from ppl_gen.program.program import Program, compile_spec

R = np.random.default_rng(3)
CLUSTERS = np.concatenate([R.normal(m, s, (60, 2)) for m, s in ((0, 1), (7, 0.5))])
THREE = np.concatenate([np.random.default_rng(9).normal(m, 1, (20 + m, 2)) for m in (0, 5, 10)])
COVARIANCES = ("full", "tied", "diagonal", "spherical")
QUICK = EM(restarts=3, max_steps=500)


def run(spec: Spec, data: object, algorithm: EM = QUICK, seed: int = 0) -> tuple[Program, Run]:
    table = read_table(data, spec)
    program = compile_spec(spec, table.schema)
    done = run_em(program, table, algorithm, seed=seed)
    program.load_state_dict(done.state)
    return program, done


def scored(program: Program, data: dict[str, np.ndarray]) -> float:
    return float(log_marginal(program, dict(program.state_dict()), program.tensors(data)).sum().detach())


def spreads(program: Program) -> np.ndarray:
    parameters = program.natural()["x"]
    return parameters["cov"] if "cov" in parameters else parameters["scale"] ** 2


Z = {"z": Categorical(3)}
C, F = R.integers(0, 3, (120, 2)), R.integers(0, 2, (120, 3)).astype(float)
G, P = R.integers(0, 2, 120), R.poisson(2 + 6 * (np.arange(120) % 2), (2, 120)).T.astype(float)
MODELS = {
    "full": (Z | {"x": MultivariateNormal(loc=By("z"), cov=By("z"))}, {"x": CLUSTERS}),
    "Poisson": (Z | {"x": Poisson(rate=By("z"))}, {"x": P}),
    "items": (Z | {"x": Categorical(probs=By("z"))}, {"x": C}),
    "coins": (Z | {"x": Bernoulli(probs=By("z"))}, {"x": F}),
    "mixed": (
        Z
        | {
            "x": Normal(loc=By("z"), scale=By("z")),
            "n": Poisson(rate=By("z")),
            "c": Categorical(probs=By("z")),
        },
        {"x": CLUSTERS, "n": P, "c": C},
    ),
    "in turns": (
        {"a": Categorical(2), "b": Categorical(2), "x": Normal(loc=By("a"), scale=By("b"))},
        {"x": CLUSTERS},
    ),
    "independent latents": (
        {
            "a": Categorical(2),
            "b": Categorical(3),
            "x": Normal(loc=By("a")),
            "n": Poisson(rate=By(["a", "b"])),
        },
        {"x": CLUSTERS, "n": P},
    ),
    "hierarchy": (
        {
            "c1": Categorical(2),
            "c2": Categorical(2, probs=By("c1")),
            "x": Normal(loc=By("c2"), scale=By("c2")),
            "n": Poisson(rate=By("c1")),
        },
        {"x": CLUSTERS, "n": P},
    ),
    "Bernoulli vector": ({"c": Bernoulli(2), "x": Normal(loc=By("c"))}, {"x": CLUSTERS}),
    "category vector": ({"c": Categorical(2, dim=2), "x": Normal(loc=By("c"))}, {"x": CLUSTERS}),
    "observed parent": (
        {"g": Categorical(2), "z": Categorical(2, probs=By("g")), "x": Normal(loc=By(["z", "g"]))},
        {"x": CLUSTERS, "g": G},
    ),
    "z in the data": (
        {"z": Categorical(2), "x": MultivariateNormal(loc=By("z"), cov=By("z"))},
        {"x": CLUSTERS, "z": G},
    ),
    "no latent": ({"x": MultivariateNormal()}, {"x": CLUSTERS}),
    "one class": ({"z": Categorical(1), "x": Normal(loc=By("z"), scale=By("z"))}, {"x": CLUSTERS}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_log_likelihood_never_falls_and_is_that_of_the_result(name):
    model, data = MODELS[name]
    program, done = run(Spec(model=model), data, EM(restarts=2, max_steps=150))
    rises = np.diff(done.history)
    # Rounding: the sum of some hundred terms of order 10 is right to about 1e-12.
    assert rises.size == 0 or rises.min() > -1e-9
    assert scored(program, data) == pytest.approx(done.history[-1], abs=1e-8)
    assert all(bool(value.isfinite().all()) for value in done.state.values())


def test_a_hierarchy_of_latents_has_the_likelihood_of_its_joint_table():
    model, data = MODELS["hierarchy"]
    program, _ = run(Spec(model=model), data, EM(restarts=1, max_steps=5))
    natural = program.natural()
    joint = np.log(natural["c1"]["probs"])[:, None] + np.log(natural["c2"]["probs"])
    x = norm.logpdf(CLUSTERS[:, None], natural["x"]["loc"], natural["x"]["scale"]).sum(-1)
    n = poisson.logpmf(P[:, None], natural["n"]["rate"]).sum(-1)
    expected = logsumexp(joint + x[:, None, :] + n[:, :, None], axis=(1, 2)).sum()
    assert scored(program, data) == pytest.approx(expected, rel=1e-12)


def test_labels_in_the_data_give_the_moments_of_each_class():
    model, data = MODELS["z in the data"]
    program, done = run(Spec(model=model), data)
    natural = program.natural()
    for k in (0, 1):
        own = CLUSTERS[k == G]
        np.testing.assert_allclose(natural["x"]["loc"][k], own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(natural["x"]["cov"][k], np.cov(own.T, bias=True), rtol=1e-10)
    np.testing.assert_allclose(natural["z"]["probs"], np.bincount(G) / 120, rtol=1e-12)
    assert done.status is Status.CONVERGED


@pytest.mark.filterwarnings("ignore")  # inductor warns of itself, and fails where that is an error
def test_eager_traced_and_compiled_agree():
    spec = gaussian_mixture(2)
    found = {}
    for how in ("eager", "traced", "compiled"):
        _program, done = run(spec, {"x": CLUSTERS}, EM(restarts=2, max_steps=20, tol=0, lowering=how))
        assert done.lowering == how
        found[how] = done
    assert found["eager"].history == found["traced"].history
    for path, value in found["eager"].state.items():
        assert torch.equal(value, found["traced"].state[path])
        torch.testing.assert_close(found["compiled"].state[path], value, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found["compiled"].history, found["eager"].history, rtol=1e-10)


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_starts():
    spec = gaussian_mixture(3)
    one, two = (run(spec, {"x": CLUSTERS}, EM(restarts=2, max_steps=5), seed=s)[1] for s in (1, 1))
    other = run(spec, {"x": CLUSTERS}, EM(restarts=2, max_steps=5), seed=2)[1]
    assert one.history == two.history
    assert all(torch.equal(value, two.state[path]) for path, value in one.state.items())
    assert one.history != other.history


def test_a_fit_draws_nothing_from_the_callers_noise():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(gaussian_mixture(2), {"x": CLUSTERS})
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("init", ["k-means++", "random-rows", "random-responsibilities"])
def test_no_start_is_at_probability_exactly_zero(init):
    spec = latent_class(3)
    table = read_table({"x": C}, spec)
    program = compile_spec(spec, table.schema)
    start = Starts(program, table, init, 4, 0).block(0, 120).exp()
    assert float(start.min()) > 0
    torch.testing.assert_close(start.sum(1), torch.ones(4, 120, dtype=torch.float64))
    program, _done = run(spec, {"x": C}, EM(init=init, restarts=2, max_steps=1))
    assert program.natural()["x"]["probs"].min() > 0


@pytest.mark.parametrize("init", ["k-means++", "random-rows", "random-responsibilities"])
def test_every_way_to_start_finds_two_clear_clusters(init):
    program, done = run(gaussian_mixture(2), {"x": CLUSTERS}, EM(init=init, restarts=5))
    assert done.status is Status.CONVERGED
    np.testing.assert_allclose(program.natural()["z"]["probs"], [0.5, 0.5], atol=1e-3)


def test_given_parameters_and_another_fit_are_where_it_starts():
    spec = gaussian_mixture(2)
    program, done = run(spec, {"x": CLUSTERS})
    _again, continued = run(spec, {"x": CLUSTERS}, EM(init=program.natural()))
    assert continued.history[0] == pytest.approx(done.history[-1], abs=1e-9)
    assert len(continued.history) <= 3

    class Fitted:
        parameters = program.natural()

    _, other = run(spec, {"x": CLUSTERS}, EM(init=Fitted()))
    assert other.history == continued.history
    assert continued.restarts == 1


WRONG_STARTS = {
    "missing": ({"z": {"probs": [0.5, 0.5]}}, "init lacks x.loc"),
    "unknown": ({"q": {}}, "init has parameters of q; the model's nodes: z, x"),
    "shape": (
        {"z": {"probs": [0.5, 0.5]}, "x": {"loc": [[0, 0]], "cov": np.eye(2)[None].repeat(2, 0)}},
        "init: x.loc has shape 1 × 2; its table holds 2 × 2",
    ),
    "not positive definite": (
        {"z": {"probs": [0.5, 0.5]}, "x": {"loc": [[0, 0], [1, 1]], "cov": -np.eye(2)[None].repeat(2, 0)}},
        "init: x.cov is not a covariance value",
    ),
    "nan": (
        {"z": {"probs": [0.5, np.nan]}, "x": {"loc": [[0, 0], [1, 1]], "cov": np.eye(2)[None].repeat(2, 0)}},
        "init: z.probs holds values that are not simplex",
    ),
    "no parameters": (7, "init must be a method's name, parameters or a Fit, not int"),
}


@pytest.mark.parametrize("case", WRONG_STARTS)
def test_a_start_that_does_not_fit_is_refused(case):
    init, expected = WRONG_STARTS[case]
    with pytest.raises(FitError, match=expected.replace("(", r"\(")):
        run(gaussian_mixture(2), {"x": CLUSTERS}, EM(init=init))


@pytest.mark.parametrize(
    "options",
    [
        {"tol": -1},
        {"restarts": 0},
        {"max_steps": 1.5},
        {"init": "kmeans"},
        {"lowering": "jit"},
        {"accelerate": "yes"},
    ],
    ids=str,
)
def test_an_option_outside_its_range_is_refused_with_the_choices(options):
    with pytest.raises(FitError, match=next(iter(options))):
        EM(**options)


def test_a_collapsed_restart_takes_no_other_down():
    # Eight rows at one point: whoever takes them alone has a singular covariance.
    data = np.concatenate([R.normal(0, 1, (100, 2)), R.normal(4, 1, (100, 2)), np.full((8, 2), 2.0)])
    _program, done = run(gaussian_mixture(3), {"x": data}, EM(restarts=20, max_steps=300, init="random-rows"))
    assert done.reseeded > 0
    assert done.status is Status.CONVERGED
    assert any("began anew" in note for note in done.notes)
    assert np.isfinite(done.history).all()
    assert sum(mode.hits for mode in done.modes) == done.finished - done.collapsed
    assert all(bool(value.isfinite().all()) for value in done.state.values())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_where_every_restart_collapses_the_parameters_are_finite_and_the_status_says_so(covariance):
    data = np.concatenate([np.zeros((20, 2)), np.full((20, 2), 9.0)])
    program, done = run(gaussian_mixture(2, covariance), {"x": data}, EM(restarts=3))
    assert done.status is Status.COLLAPSED
    assert done.collapsed == 3
    assert all(bool(value.isfinite().all()) for value in done.state.values())
    assert np.isfinite(scored(program, {"x": data}))


def test_classes_come_in_decreasing_weight():
    data = np.concatenate([R.normal(m, 1, (n, 1)) for m, n in ((0, 20), (20, 100), (40, 60))])
    program, done = run(gaussian_mixture(3, "diagonal"), {"x": data}, EM(restarts=5))
    np.testing.assert_allclose(program.natural()["z"]["probs"], [100 / 180, 60 / 180, 20 / 180], rtol=1e-6)
    np.testing.assert_allclose(program.natural()["x"]["loc"][:, 0], [20, 40, 0], atol=0.5)
    assert scored(program, {"x": data}) == pytest.approx(done.history[-1], abs=1e-8)
    assert done.modes[0].shares == pytest.approx([100 / 180, 60 / 180, 20 / 180], rel=1e-6)


def test_reordering_classes_keeps_the_law_where_two_latents_share_a_table():
    spec = Spec(
        model={
            "p": Free(),
            "a": Categorical(2, probs="p"),
            "b": Categorical(2, probs="p"),
            "x": Normal(1, loc=By("a"), scale=1),
            "y": Normal(1, loc=By("b"), scale=1),
        }
    )
    program = compile_spec(spec, {"x": CLUSTERS[:, :1], "y": CLUSTERS[:, 1:]})
    assert not exchangeable(program, "a")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(order=st.permutations(range(3)))
def test_the_optimum_does_not_depend_on_the_labels_it_starts_from(order):
    spec = gaussian_mixture(3, "diagonal")
    order = list(order)
    loc, scale = np.array([[0.0, 0], [5, 5], [10, 10]]), np.array([[1.0, 1], [2, 2], [1, 1]])
    start = {
        "z": {"probs": np.array([0.2, 0.3, 0.5])[order]},
        "x": {"loc": loc[order], "scale": scale[order]},
    }
    program, done = run(spec, {"x": THREE}, EM(init=start, max_steps=40))
    plain, first = run(
        spec,
        {"x": THREE},
        EM(init={"z": {"probs": [0.2, 0.3, 0.5]}, "x": {"loc": loc, "scale": scale}}, max_steps=40),
    )
    np.testing.assert_allclose(done.history, first.history, rtol=1e-12)
    np.testing.assert_allclose(program.natural()["x"]["loc"], plain.natural()["x"]["loc"], rtol=1e-10)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    unit=st.floats(1e-6, 1e6),
    shift=st.floats(-1e3, 1e3),
    covariance=st.sampled_from(COVARIANCES),
    seed=st.integers(0, 3),
)
def test_units_and_shifts_of_the_data_are_those_of_the_result(unit, shift, covariance, seed):
    spec, algorithm = gaussian_mixture(2, covariance), EM(restarts=1, max_steps=10, tol=1e-7)
    plain, first = run(spec, {"x": CLUSTERS}, algorithm, seed)
    moved, done = run(spec, {"x": unit * (CLUSTERS + shift)}, algorithm, seed)
    # Data at 1e3 times their spread are themselves rounded to 1e-13 of it; ten steps carry that along.
    np.testing.assert_allclose(spreads(moved), unit**2 * spreads(plain), rtol=1e-7, atol=1e-9 * unit**2)
    np.testing.assert_allclose(moved.natural()["z"]["probs"], plain.natural()["z"]["probs"], rtol=1e-7)
    log_unit = CLUSTERS.size * np.log(unit)
    assert done.history[-1] + log_unit == pytest.approx(first.history[-1], rel=1e-8)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_an_offset_of_1e8_costs_no_digits(covariance):
    offset = 1e8
    away = CLUSTERS + offset
    home = away - offset  # exact, and so the same rounding of the data
    spec = gaussian_mixture(2, covariance)
    far, done = run(spec, {"x": away})
    near, first = run(spec, {"x": home})
    bound = 1e-11 if covariance == "full" else 1e-12  # full: off-diagonal entries near 0 lose a digit
    np.testing.assert_allclose(spreads(far), spreads(near), rtol=bound)
    # Out of standard units by two sums and two quotients, each rounded to 1.5e-8 of the data's units.
    np.testing.assert_allclose(far.natural()["x"]["loc"] - offset, near.natural()["x"]["loc"], atol=4e-8)
    assert done.history[-1] == pytest.approx(first.history[-1], rel=1e-12)
    # The location itself is only stored to 1.5e-8 here, which the density feels in second order.
    assert scored(far, {"x": away}) == pytest.approx(first.history[-1], abs=1e-5)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_float32_input_at_an_offset_of_1e4_has_the_optimum_of_float64(covariance):
    narrow = (CLUSTERS + 1e4).astype(np.float32)
    spec = gaussian_mixture(2, covariance)
    _program, done = run(spec, {"x": narrow})
    _same, wide = run(spec, {"x": narrow.astype(np.float64)})
    assert done.history == wide.history
    _plain, first = run(spec, {"x": CLUSTERS})
    assert done.history[-1] == pytest.approx(first.history[-1], rel=1e-4)  # data rounded to 5e-4


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("rows", ["equal", "one constant column", "a constant column at 1e8"])
def test_constant_columns_never_make_a_nan(covariance, rows):
    x = CLUSTERS.copy()
    if rows == "equal":
        x[:] = 3.0
    else:
        x[:, 1] = 1e8 if "1e8" in rows else 3.0
    spec = gaussian_mixture(2, covariance)
    table = read_table({"x": x}, spec)
    assert any("'x[1]'" in warning and "same value in every row" in warning for warning in table.warnings)
    program = compile_spec(spec, table.schema)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = run_em(program, table, QUICK)
    program.load_state_dict(done.state)
    assert all(bool(value.isfinite().all()) for value in done.state.values())
    assert np.isfinite(done.history).all()
    np.testing.assert_allclose(program.natural()["x"]["loc"][:, 1], x[0, 1], rtol=1e-12)


def test_ctrl_c_ends_the_run_after_the_step_at_hand(monkeypatch):
    stock, calls = Restarts.update, []

    def update(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(Restarts, "update", update)
    handler = signal.getsignal(signal.SIGINT)
    program, done = run(gaussian_mixture(2), {"x": CLUSTERS}, EM(tol=0, restarts=2))
    assert done.status is Status.INTERRUPTED
    assert len(done.history) == len(calls) == 3
    assert all(bool(value.isfinite().all()) for value in done.state.values())
    assert scored(program, {"x": CLUSTERS}) == pytest.approx(done.history[-1], abs=1e-8)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_acts_at_once(monkeypatch):
    stock = Restarts.update

    def update(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(Restarts, "update", update)
    # A shell's job in the background ignores the signal, and so would Python.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(gaussian_mixture(2), {"x": CLUSTERS})
    finally:
        signal.signal(signal.SIGINT, before)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    spec, algorithm = gaussian_mixture(2), EM(restarts=2, max_steps=15, tol=0)
    whole, first = run(spec, {"x": CLUSTERS}, algorithm)
    monkeypatch.setattr(engine, "block_rows", lambda *args: 50)
    parts, done = run(spec, {"x": CLUSTERS}, algorithm)
    np.testing.assert_allclose(done.history, first.history, rtol=1e-12)
    np.testing.assert_allclose(spreads(parts), spreads(whole), rtol=1e-9)


def test_modes_say_how_many_restarts_reached_each():
    _, done = run(gaussian_mixture(3), {"x": CLUSTERS}, EM(restarts=12))
    assert done.restarts == 12
    assert done.finished == 10  # the others are dropped after a short run
    assert sum(mode.hits for mode in done.modes) == done.finished - done.collapsed
    values = [mode.log_likelihood for mode in done.modes]
    assert values == sorted(values, reverse=True)
    assert values[0] == done.history[-1]


def test_max_steps_is_said_when_it_ends_the_run():
    _, done = run(gaussian_mixture(3), {"x": CLUSTERS}, EM(restarts=1, max_steps=2))
    assert done.status is Status.MAX_STEPS
    assert len(done.history) == 3
