"""SVI: the right gradient steps, the same in every lowering, and the known optimum where there is one."""

from __future__ import annotations

import os
import signal

import numpy as np
import pyro
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ppl_gen.data.reading import read_table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import Categorical, Input, MultivariateNormal, Normal
from ppl_gen.declare.phrasebook import gaussian_mixture
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import EM, OPTIMIZERS, SVI
from ppl_gen.infer.em import run_em
from ppl_gen.infer.enumeration import log_marginal
from ppl_gen.infer.optimisers import adam, adam_memory
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Status
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import Program, compile_spec

R = np.random.default_rng(6)
X = R.normal(size=(50, 3))
FACTORS = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})


def run(spec: Spec, data: object, algorithm: SVI, seed: int = 0, **options: object) -> tuple[Program, Run]:
    table = read_table(data, spec)
    program = compile_spec(spec, table.schema)
    done = run_svi(program, table, algorithm, seed=seed, **options)
    program.load_state_dict(done.state)
    return program, done


def scored(program: Program, data: dict[str, np.ndarray]) -> float:
    return float(log_marginal(program, dict(program.state_dict()), program.tensors(data)).sum().detach())


def test_our_adam_is_that_of_torch():
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(20, generator=generator, dtype=torch.float64)
    leaf = flat.clone().requires_grad_()
    stock = torch.optim.Adam([leaf], lr=0.03)
    memory, rate = adam_memory([flat]), torch.tensor(0.03, dtype=torch.float64)
    for _ in range(50):
        gradient = torch.randn(20, generator=generator, dtype=torch.float64)
        leaf.grad = gradient.clone()
        stock.step()
        (flat,), memory = adam([flat], [gradient], memory, rate)
        torch.testing.assert_close(flat, leaf.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimiser_by_name_climbs(name):
    rate = {"adadelta": 1.0, "sgd": 0.002, "adagrad": 0.05}.get(name, 0.02)
    # Thirty draws: the two bounds that are compared are then off by tenths of a nat, and the climb is of several.
    algorithm = SVI(epochs=12, batch_size=25, learning_rate=rate, optimizer=name, particles=30)
    _, done = run(FACTORS, {"x": 3 + X}, algorithm)
    assert done.status is Status.EPOCHS_DONE
    assert done.history[-1] > done.history[0]


def test_an_optimiser_may_be_a_function():
    algorithm = SVI(epochs=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True))
    _, done = run(FACTORS, {"x": X}, algorithm)
    assert len(done.history) == 3


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"batch_size": True}, {"learning_rate": 0}, {"optimizer": "adamant"}, {"particles": -1}],
    ids=str,
)
def test_an_option_outside_its_range_is_refused_by_name(options):
    with pytest.raises(FitError, match=next(iter(options))):
        SVI(**options)


@pytest.mark.parametrize("size", [7, 50, 49, 1000])
def test_a_ragged_last_batch_and_a_batch_of_all_rows_run(size):
    _, done = run(FACTORS, {"x": X}, SVI(epochs=2, batch_size=size))
    assert len(done.history) == 2
    assert np.isfinite(done.history).all()


def test_a_full_batch_history_is_the_sum_over_rows_and_a_ragged_one_of_all_its_batches():
    # Tiny steps: the objective hardly moves, so an epoch's sum is that of all rows, however they are cut.
    spec = gaussian_mixture(2)
    program, whole = run(spec, {"x": X}, SVI(epochs=1, batch_size=50, learning_rate=1e-12))
    _, cut = run(spec, {"x": X}, SVI(epochs=1, batch_size=7, learning_rate=1e-12))
    assert whole.history[0] == pytest.approx(scored(program, {"x": X}), rel=1e-9)
    assert cut.history[0] == pytest.approx(whole.history[0], rel=1e-9)


def test_the_same_seed_gives_the_same_bits_and_another_other_noise():
    algorithm = SVI(epochs=2, batch_size=20)
    one, two, other = (run(FACTORS, {"x": X}, algorithm, seed)[1] for seed in (1, 1, 2))
    assert one.history == two.history
    assert all(torch.equal(value, two.state[path]) for path, value in one.state.items())
    assert one.history != other.history


def test_a_fit_takes_nothing_from_the_callers_noise_and_thread_count():
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(FACTORS, {"x": X}, SVI(epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_fits_leave_pyros_store_empty_and_do_not_meet_in_it():
    pyro.clear_param_store()
    em_spec = gaussian_mixture(2)

    def by_em() -> tuple[float, ...]:
        table = read_table({"x": X}, em_spec)
        return run_em(compile_spec(em_spec, table.schema), table, EM(restarts=2, max_steps=5)).history

    def by_svi() -> tuple[float, ...]:
        return run(FACTORS, {"x": X}, SVI(epochs=2))[1].history

    first = by_em(), by_svi(), by_svi(), by_em()
    assert first[0] == first[3]
    assert first[1] == first[2]
    assert len(pyro.get_param_store()) == 0


def test_whatever_lies_in_pyros_store_is_left_there():
    pyro.clear_param_store()
    pyro.param("mine", torch.ones(2))
    run(FACTORS, {"x": X}, SVI(epochs=1))
    assert torch.equal(pyro.param("mine"), torch.ones(2))
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()


def test_ctrl_c_ends_the_run_with_what_there_is():
    def interrupt(epoch: int, epochs: int, elbo: float) -> None:
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    _program, done = run(FACTORS, {"x": X}, SVI(epochs=50), progress=interrupt)
    assert done.status is Status.INTERRUPTED
    assert 2 <= len(done.history) <= 3
    assert all(bool(value.isfinite().all()) for value in done.state.values())


def test_progress_is_told_of_every_epoch():
    seen: list[tuple[int, int, float]] = []
    _, done = run(FACTORS, {"x": X}, SVI(epochs=3), progress=lambda *news: seen.append(news))
    assert [(epoch, epochs) for epoch, epochs, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert tuple(elbo for *_, elbo in seen) == done.history


def test_a_diverged_run_returns_the_last_finite_parameters():
    spec = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=MLP("z", [4]), scale=Linear("z"))})
    _, done = run(spec, {"x": X}, SVI(epochs=20, learning_rate=1e4))
    assert done.status is Status.DIVERGED
    assert not done.status.usable
    assert all(bool(value.isfinite().all()) for value in done.state.values())


def test_a_model_without_free_parameters_is_refused():
    with pytest.raises(FitError, match="no free parameter"):
        run(Spec(model={"x": Normal(3, loc=0, scale=1)}), {"x": X}, SVI(epochs=1))


# Known optima.
U = R.normal(size=(160, 1))
SIDE = np.arange(160) % 2
Y = np.where(SIDE[:, None], 1 + 2 * U, -1 - U) + 0.3 * R.normal(size=(160, 1))
REGRESSIONS = Spec(
    model={"u": Input(1), "z": Categorical(2), "y": Normal(1, loc=Linear("u", by="z"), scale=By("z"))}
)


def regressions_by_hand(u: np.ndarray, y: np.ndarray) -> float:
    """EM for a mixture of two regressions: weighted least squares, from the true sides."""
    A = np.c_[np.ones(len(u)), u]
    r = np.eye(2)[SIDE] * 0.9 + 0.05
    for _ in range(500):
        joint = np.empty((len(u), 2))
        for k in (0, 1):
            w = r[:, k]
            beta = np.linalg.solve(A.T @ (A * w[:, None]), A.T @ (w[:, None] * y))
            square = ((y - A @ beta) ** 2)[:, 0]
            variance = (w * square).sum() / w.sum()
            joint[:, k] = np.log(w.mean()) - 0.5 * np.log(2 * np.pi * variance) - 0.5 * square / variance
        top = joint.max(1, keepdims=True)
        rows = top[:, 0] + np.log(np.exp(joint - top).sum(1))
        r = np.exp(joint - rows[:, None])
    return float(rows.sum())


def test_a_mixture_of_regressions_reaches_the_optimum_of_em():
    algorithm = SVI(epochs=400, batch_size=160, learning_rate=0.05)
    program, _done = run(REGRESSIONS, {"u": U, "y": Y}, algorithm)
    # Adam at a fixed rate hovers: 0.05 nats over 160 rows.
    assert scored(program, {"u": U, "y": Y}) > regressions_by_hand(U, Y) - 0.05
    assert program.natural()["z"]["probs"][0] >= program.natural()["z"]["probs"][1]


def test_an_ordered_mixture_reaches_the_optimum_of_the_plain_one():
    x = np.r_[R.normal(0, 1, (60, 1)), R.normal(6, 1, (90, 1))]
    plain = gaussian_mixture(2, "diagonal")
    table = read_table({"x": x}, plain)
    best = run_em(compile_spec(plain, table.schema), table, EM(restarts=5)).history[-1]
    spec = Spec(model={"z": Categorical(2), "x": Normal(1, loc=By("z", ordered=True), scale=By("z"))})
    program, _ = run(spec, {"x": x}, SVI(epochs=500, batch_size=150, learning_rate=0.05))
    assert scored(program, {"x": x}) > best - 0.05
    loc = program.natural()["x"]["loc"][:, 0]
    assert loc[0] < loc[1]


def test_concomitants_reach_the_optimum_of_logistic_regression():
    # The classes are in the data, so the gating is a logistic regression, whose optimum scikit-learn knows.
    labels = (R.uniform(size=160) < 1 / (1 + np.exp(-0.5 - 1.5 * U[:, 0]))).astype(int)
    spec = Spec(model={"u": Input(1), "z": Categorical(2, logits=Linear("u"))})
    program, _ = run(spec, {"u": U, "z": labels}, SVI(epochs=400, batch_size=160, learning_rate=0.05))
    stock = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(U, labels)
    best = stock.predict_log_proba(U)[np.arange(160), labels].sum()
    assert scored(program, {"u": U, "z": labels}) == pytest.approx(best, abs=0.01)


def test_a_network_of_a_category_reaches_the_class_means():
    labels = np.arange(90) % 3
    y = np.array([[-2.0], [0.0], [3.0]])[labels] + 0.5 * R.normal(size=(90, 1))
    spec = Spec(model={"c": Categorical(3), "y": Normal(1, loc=MLP("c", [8]), scale=Free())})
    program, _ = run(spec, {"c": labels, "y": y}, SVI(epochs=600, batch_size=90, learning_rate=0.02))
    means = np.array([y[labels == k].mean() for k in range(3)])
    variance = ((y[:, 0] - means[labels]) ** 2).mean()
    best = -45 * (np.log(2 * np.pi * variance) + 1) - 90 * np.log(3)
    assert scored(program, {"c": labels, "y": y}) > best - 0.05


def test_offsets_of_1e4_in_float32_do_not_ruin_a_vae():
    spec = read_spec("vae_diagonal")
    _, done = run(spec, {"x": (X + 1e4).astype(np.float32)}, SVI(epochs=2))
    assert np.isfinite(done.history).all()


@pytest.mark.parametrize("transform", ["exp", "softplus", "sigmoid"])
def test_a_location_kept_in_a_range_starts_finite_wherever_the_data_lie(transform):
    spec = Spec(model={"x": Normal(1, loc=Free(transform=transform), scale=1)})
    for x in (X[:, :1] - 9, X[:, :1] + 0.5):
        program, done = run(spec, {"x": x}, SVI(epochs=3))
        assert np.isfinite(done.history).all()
        assert program.natural()["x"]["loc"] > 0


@pytest.mark.parametrize("node", [Normal, MultivariateNormal], ids=lambda node: node.family)
def test_spreads_beside_a_function_start_at_those_of_the_columns(node):
    # Else a column in the wrong unit starts millions of nats away.
    wide = 1e3 * X
    _, done = run(
        Spec(model={"u": Input(1), "x": node(loc=Linear("u"))}), {"u": U[:50], "x": wide}, SVI(epochs=1)
    )
    at_moments = -25 * (3 * np.log(2 * np.pi) + 2 * np.log(wide.std(0)).sum() + 3)
    assert done.history[0] == pytest.approx(at_moments, abs=5)
