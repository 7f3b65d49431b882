"""What SVI climbs: each part of the objective against the deck's formulas, torch's own and plain sums."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from ppl_gen import MLP, SVI, By, Categorical, Free, Input, Linear, Normal, Spec, compile_spec, fit, reference
from ppl_gen.data.reading import read_table
from ppl_gen.errors import FitError
from ppl_gen.infer.ascent import Ascent
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.objective import Objective
from ppl_gen.infer.tables import start_tables
from ppl_gen.program.lowering import pyro_scope

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(size=(60, 4)) @ RANDOM.normal(size=(4, 4))
VAE = Spec(
    model={"z": Normal(2, loc=0, scale=1), "x": Normal(4, loc=MLP("z", [5]), scale=Free())},
    guide={"z": Normal(2, loc=MLP("x", [5]), scale=MLP("x", [5]))},
)
CLUSTERED = Spec(
    model={
        "c": Categorical(3),
        "z": Normal(2, loc=By("c"), scale=By("c")),
        "x": Normal(4, loc=Linear("z"), scale=Free()),
    }
)


def compiled(spec: Spec = VAE) -> tuple[object, dict[str, torch.Tensor]]:
    program = compile_spec(spec, {"x": X}, dtype=torch.float64)
    return program, program.tensors({"x": X})


def bounds(objective: Objective, seed: int, beta: float | None = None, spec: Spec = VAE) -> np.ndarray:
    """What is climbed and the plain bound: (2, N)."""
    program, rows = compiled(spec)
    scale = None if beta is None else torch.tensor(beta, dtype=torch.float64)
    with pyro_scope(), torch.no_grad():
        torch.manual_seed(seed)
        return torch.stack(objective.per_row(program.model, program.guide, rows, scale)).numpy()


def kl_by_formula() -> np.ndarray:
    """F9.5's KL(q ‖ p) of each row and dimension, from the guide's own location and scale: (N, 2)."""
    program, rows = compiled()
    with torch.no_grad():
        q = program.recognition.distribution("z", dict(rows))
    mean, variance = q.mean.numpy(), q.variance.numpy()
    return 0.5 * (mean**2 + variance - 1 - np.log(variance))


def test_the_closed_form_has_the_sampled_bounds_expectation_and_less_of_its_noise():
    draws = 400
    sampled = np.stack([bounds(Objective(), seed)[0] for seed in range(draws)])
    analytic = np.stack([bounds(Objective(analytic=True), seed)[0] for seed in range(draws)])
    apart = (sampled - analytic).sum(1)
    error = apart.std(ddof=1) / math.sqrt(draws)
    assert abs(apart.mean()) < 4 * error  # 4 standard errors: once in 16 000 runs
    assert analytic.sum(1).std() < 0.9 * sampled.sum(1).std()


@pytest.mark.parametrize("beta", [0.0, 0.3, 4.0])
def test_beta_weighs_the_kl_part_and_leaves_the_reported_bound_alone(beta):
    climbed, plain = bounds(Objective(analytic=True), 1, beta)
    # r − βκ = (r − κ) + (1 − β)κ, with κ from F9.5 itself.
    np.testing.assert_allclose(climbed, plain + (1 - beta) * kl_by_formula().sum(1), atol=1e-12)
    np.testing.assert_allclose(plain, bounds(Objective(analytic=True), 1)[1], atol=1e-12)


def test_free_bits_hold_a_small_kl_at_its_floor_and_stop_its_gradient():
    mean = kl_by_formula().sum(1).mean()
    _, plain = bounds(Objective(analytic=True), 1)
    above = mean / 2 + 0.1  # per dimension; z has two
    climbed, _ = bounds(Objective(analytic=True, free_bits=above), 1)
    np.testing.assert_allclose(climbed, plain + kl_by_formula().sum(1) - 2 * above, atol=1e-12)
    climbed, _ = bounds(Objective(analytic=True, free_bits=mean / 2 - 1e-3), 1)
    np.testing.assert_allclose(climbed, plain, atol=1e-12)
    program, rows = compiled()
    gradients = []
    for objective, beta in (
        (Objective(analytic=True, free_bits=above), 1.0),
        (Objective(analytic=True), 0.0),
    ):
        with pyro_scope():
            torch.manual_seed(0)
            climbed, _ = objective.per_row(program.model, program.guide, rows, torch.tensor(beta))
        gradients.append(torch.autograd.grad(climbed.sum(), list(program.parameters())))
    for floored, without in zip(*gradients, strict=True):
        np.testing.assert_allclose(floored.numpy(), without.numpy(), atol=1e-12)


def test_the_importance_weighted_bound_is_the_log_mean_weight_and_no_looser():
    program, rows = compiled()
    with pyro_scope(), torch.no_grad():
        torch.manual_seed(3)
        log_w = TraceableELBO(7).log_weights(program.model, program.guide, rows).numpy()
    climbed, plain = bounds(Objective(7, importance=True), 3)
    np.testing.assert_allclose(climbed, logsumexp(log_w, axis=0) - math.log(7), atol=1e-12)
    np.testing.assert_array_equal(climbed, plain)
    np.testing.assert_allclose(climbed, reference.importance_weighted_bound(log_w), atol=1e-12)
    assert climbed.sum() > log_w.mean(0).sum()  # Jensen's inequality, on the same draws


@pytest.mark.parametrize("objective", [Objective(), Objective(3), Objective(analytic=True)])
def test_a_latent_whose_prior_is_summed_over_classes_is_bounded_by_the_same_number(objective):
    climbed, plain = bounds(objective, 2, spec=CLUSTERED)
    program, rows = compiled(CLUSTERED)
    with pyro_scope(), torch.no_grad():
        torch.manual_seed(2)
        expected = TraceableELBO(objective.particles).per_row(program.model, program.guide, rows).numpy()
    np.testing.assert_allclose(plain, expected, atol=1e-12)
    np.testing.assert_array_equal(climbed, plain)


def test_at_beta_0_only_the_likelihood_given_the_draw_is_climbed():
    climbed, _ = bounds(Objective(), 2, 0.0, CLUSTERED)
    program, rows = compiled(CLUSTERED)
    with pyro_scope(), torch.no_grad():
        torch.manual_seed(2)
        z = program.guide(rows)["z"]
        x = program.generative.distribution("x", {**rows, "z": z}).log_prob(rows["x"])
    np.testing.assert_allclose(climbed, x.numpy(), atol=1e-12)


def test_clipping_and_decay_are_torchs():
    same = {"epochs": 3, "batch_size": 60, "learning_rate": 0.1, "kl": "analytic", "lowering": "eager"}
    own = fit(VAE, {"x": X}, SVI(**same, weight_decay=0.5, clip_norm=0.01), dtype=torch.float64)

    program, rows = compiled()
    program.load_state_dict(start_tables(program, read_table({"x": X}, VAE), 0))
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(program.parameters(), lr=0.1, weight_decay=0.5)
    for epoch in range(3):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(epoch))
        with pyro_scope():
            bound, _ = Objective(analytic=True).per_row(
                program.model, program.guide, {"x": rows["x"][order]}, None
            )
        optimiser.zero_grad()
        (-bound.mean()).backward()
        torch.nn.utils.clip_grad_norm_(program.parameters(), 0.01)
        optimiser.step()
    for path, value in program.state_dict().items():
        np.testing.assert_allclose(own.program.state_dict()[path].numpy(), value.numpy(), atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", [0.1 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(5)]),
        ("exponential", [0.1 * 0.01 ** (epoch / 4) for epoch in range(5)]),
        (lambda own: torch.optim.lr_scheduler.StepLR(own, 2, 0.1), [0.1, 0.1, 0.01, 0.01, 0.001]),
    ],
)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_schedule_sets_the_rate_of_each_epoch(monkeypatch, schedule, rates, optimizer):
    seen = []
    told = Ascent.end_epoch

    def noting(self, elbo):
        seen.append(float(self.schedule.rate))
        told(self, elbo)
        seen.append(float(self.knobs["rate"]))

    monkeypatch.setattr(Ascent, "end_epoch", noting)
    algorithm = SVI(epochs=4, learning_rate=0.1, optimizer=optimizer, schedule=schedule, clip_norm=1.0)
    fit(VAE, {"x": X}, algorithm)
    assert seen[::2] == pytest.approx(rates[:4])
    assert seen[1::2] == pytest.approx(rates[1:], abs=1e-7)  # the step's own rate is a float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"objective": "iwea"}, "objective"),
        ({"objective": "iwae"}, "particles of 2 or more"),
        ({"objective": "iwae", "particles": 4, "beta": 2.0}, "beta=2.0 goes with objective='elbo' only"),
        ({"kl": "exact"}, "kl"),
        ({"beta": -1.0}, "beta"),
        ({"warm_up": -1}, "warm_up"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"schedule": "cosin"}, "schedule"),
        ({"schedule": 3}, "schedule must be a name or a function"),
        ({"autocast": "bfloat16"}, "autocast must be True or False, not 'bfloat16'"),
    ],
)
def test_what_svi_cannot_mean_is_refused_by_name(options, words):
    with pytest.raises(FitError, match=words):
        SVI(**options)


def test_autocast_rounds_products_to_eight_bits_and_nothing_else():
    told = {}
    for how in ("eager", "traced"):
        for autocast in (False, True):
            run = fit(VAE, {"x": X}, SVI(epochs=4, batch_size=20, autocast=autocast, lowering=how)).run
            told[how, autocast] = run.history
            assert {value.dtype for value in run.state.values()} == {torch.float32}
    assert told["eager", True] == told["traced", True]
    # A number of eight bits is off by 2⁻⁹ of itself: inputs, weights and product, of two layers on either side.
    np.testing.assert_allclose(told["eager", True], told["eager", False], rtol=12 * 2**-9)
    assert (
        np.abs(np.divide(told["eager", True], told["eager", False]) - 1).max() > 1e-5
    )  # float32 is off by 1e-7


def test_autocast_of_double_precision_is_refused():
    with pytest.raises(FitError, match="autocast is for float32, not float64"):
        fit(VAE, {"x": X}, SVI(epochs=1, autocast=True), dtype=torch.float64)


def test_warm_up_climbs_from_nothing_to_the_bound(monkeypatch):
    told: list[float] = []
    warm_to = Ascent.warm_to

    def noting(self, share):
        told.append(share)
        warm_to(self, share)

    monkeypatch.setattr(Ascent, "warm_to", noting)
    fit(VAE, {"x": X}, SVI(epochs=4, batch_size=30, warm_up=3))
    assert told == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1])


def test_an_input_of_categories_may_have_its_size_written():
    u = np.arange(60) % 3
    fits = [
        fit(
            Spec(model={"u": own, "z": Normal(2, loc=0, scale=1), "x": Normal(4, loc=MLP(["z", "u"], [5]))}),
            {"u": u, "x": X},
            SVI(epochs=2),
        )
        for own in (Input(k=3), Input(1, k=3))
    ]
    assert fits[0].elbo == fits[1].elbo
    assert all(line.ok is not False for line in fits[1].certificate.lines)
