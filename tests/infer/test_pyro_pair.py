"""A Pyro model and guide of one's own: the same numbers as Pyro and torch, and words where something is wrong."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.nn import PyroModule, PyroParam
from sklearn.mixture import GaussianMixture
from torch import nn

from ppl_gen import SVI, DataError, FitError, fit_pyro
from ppl_gen.certify.pyro_pair import certify_pair
from ppl_gen.infer.pyro_rows import own_rows

R = np.random.default_rng(3)
X = R.normal(size=(90, 6)) @ R.normal(size=(6, 6))
positive, simplex = dist.constraints.positive, dist.constraints.simplex


class VAE(nn.Module):
    """The VAE of Pyro's tutorial, on real numbers."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(6, 5), nn.Softplus(), nn.Linear(5, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 5), nn.Softplus(), nn.Linear(5, 6))
        self.double()

    def model(self, rows):
        pyro.module("decoder", self.decoder)
        x = rows["x"]
        with pyro.plate("rows", x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, rows):
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            loc, log_scale = self.encoder(rows["x"]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Modular(PyroModule):
    """The same with PyroModules, a constrained scale, and a constant that nobody trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.decoder = PyroModule[nn.Linear](2, 6)
        self.encoder = nn.Linear(6, 2)
        self.scale = PyroParam(torch.ones(6), constraint=positive)
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        self.double()
        self.scale_unconstrained = nn.Parameter(self.scale_unconstrained.double())

    def forward(self, rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(rows["x"].new_zeros(2), 1.0).to_event(1))
            loc = self.decoder(z) + self.shift
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=rows["x"])

    def guide(self, rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            # Not registered with Pyro, whose own SVI would leave it where it is.
            pyro.sample("z", dist.Normal(self.encoder(rows["x"]), 0.5).to_event(1))


def run(own, algorithm, **options):
    return fit_pyro(own.model, own.guide, X, algorithm, dtype=torch.float64, **options)


def same(one, other):
    assert one.history.tolist() == other.history.tolist()
    for name, value in one.parameters.items():
        np.testing.assert_array_equal(value, other.parameters[name])


@pytest.fixture(autouse=True)
def store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def by_hand(own, epochs, size, rate, seed):
    """The loop that this stands for, in plain torch; each epoch's ELBO."""
    x, history = torch.tensor(X), []
    optimiser = torch.optim.Adam(own.parameters(), lr=rate)
    torch.manual_seed(seed)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed + epoch))
        history.append(0.0)
        for index in order.split(size):
            batch = x[index]
            loc, log_scale = own.encoder(batch).chunk(2, -1)
            scale = log_scale.exp()
            z = loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
            fitted = -0.5 * ((batch - own.decoder(z)) ** 2 + math.log(2 * math.pi)).sum(1)
            kl = (-log_scale - 0.5 * ((z - loc) / scale) ** 2 + 0.5 * z**2).sum(1)
            bound = fitted - kl
            optimiser.zero_grad()
            (-bound.mean()).backward()
            optimiser.step()
            history[-1] += float(bound.detach().sum())
    return history


def test_it_trains_as_the_loop_one_would_have_written():
    mine, theirs = VAE(), VAE()
    found = run(mine, SVI(epochs=6, batch_size=32, learning_rate=0.02), seed=4)
    # Sums in another order, 18 steps of double precision.
    np.testing.assert_allclose(found.history, by_hand(theirs, 6, 32, 0.02, 4), rtol=1e-9)
    for (name, own), other in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-9, msg=name)
    assert found.certificate.ok
    assert "epochs done" in repr(found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"particles": 3},
        {"objective": "iwae", "particles": 3, "clip_norm": 1.0},
        {"kl": "analytic", "beta": 0.5, "warm_up": 2, "free_bits": 0.1},
        {"optimizer": "adamw", "schedule": "cosine", "weight_decay": 0.01},
        {"validation": 0.2, "patience": 2, "window": 2, "on_nan": "recover"},
    ],
    ids=str,
)
def test_every_option_gives_the_same_bits_eager_and_traced(options):
    eager, traced = (
        run(VAE(), SVI(epochs=4, batch_size=32, lowering=how, **options)) for how in ("eager", "traced")
    )
    same(eager, traced)
    assert traced.run.lowering == "traced"


def test_pyromodules_and_unregistered_modules_are_trained_and_buffers_are_not():
    fits = []
    for how in ("eager", "traced"):
        own = Modular()
        before = {name: value.clone() for name, value in own.state_dict().items()}
        algorithm = SVI(epochs=3, batch_size=32, learning_rate=0.01, lowering=how)
        fits.append(fit_pyro(own, own.guide, X, algorithm, dtype=torch.float64))
        moved = {name for name, value in own.state_dict().items() if not torch.equal(value, before[name])}
        assert moved == set(before) - {"shift"}
    same(*fits)
    assert fits[0].certificate.ok
    assert (fits[0].parameters["scale"] > 0).all()


def test_fits_share_nothing_and_pyros_store_stays_as_it_was():
    mine = torch.tensor([1.0, 2.0])
    pyro.param("decoder$$$0.weight", mine)
    first = run(VAE(), SVI(epochs=2))
    kept = {name: value.copy() for name, value in first.parameters.items()}
    run(VAE(5), SVI(epochs=2), seed=9)
    again = run(VAE(), SVI(epochs=2))
    same(first, again)
    for name, value in first.parameters.items():
        np.testing.assert_array_equal(value, kept[name])
    assert list(pyro.get_param_store()) == ["decoder$$$0.weight"]
    assert pyro.param("decoder$$$0.weight").tolist() == mine.tolist()


def test_a_beginning_that_is_closed_over_is_not_written_over():
    begin = torch.zeros(())

    def model(rows):
        with pyro.plate("rows", len(rows["x"]), dim=-1):
            pyro.sample("x", dist.Normal(pyro.param("loc", begin), 1.0), obs=rows["x"])

    first, second = (fit_pyro(model, lambda rows: None, X[:, 0], SVI(epochs=2)) for _ in range(2))
    assert first.parameters["loc"] != 0
    same(first, second)
    assert float(begin) == 0
    assert not begin.requires_grad


def flow():
    """A guide whose law holds networks, which are called when its density is asked for."""
    law, encoder, decoder = affine_autoregressive(2, hidden_dims=[8]), nn.Linear(6, 2), nn.Linear(2, 6)

    def model(rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=rows["x"])

    def guide(rows):
        base = dist.Normal(encoder(rows["x"]), 1.0).to_event(1)
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            pyro.sample("z", dist.TransformedDistribution(base, [law]))

    return model, guide, [law, encoder, decoder]


def raw():
    """A law that holds parameters as they are, and whose divergence is taken outside the functions."""
    prior, encoder = nn.ParameterDict({"tril": torch.eye(6), "loc": torch.zeros(6)}), nn.Linear(6, 6)

    def model(rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            z = pyro.sample("z", dist.MultivariateNormal(prior["loc"], scale_tril=prior["tril"]))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=rows["x"])

    def guide(rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            own = dist.MultivariateNormal(encoder(rows["x"]), scale_tril=0.7 * torch.eye(6))
            pyro.sample("z", own)

    return model, guide, [prior, encoder]


def classes():
    """A guide that names classes, enumerated, beside a continuous latent."""
    encoder, naming, decoder = nn.Linear(6, 4), nn.Linear(6, 3), nn.Linear(2, 6)
    shift = nn.Embedding(3, 6)

    def model(rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z) + shift(c), 1.0).to_event(1), obs=rows["x"])

    def guide(rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            pyro.sample("c", dist.Categorical(logits=naming(rows["x"])), infer={"enumerate": "parallel"})
            loc, log_scale = encoder(rows["x"]).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, [encoder, naming, decoder, shift]


@pytest.mark.parametrize(
    ("make", "options"),
    [(flow, {}), (raw, {"kl": "analytic"}), (classes, {"particles": 2})],
    ids=["flow", "raw", "classes"],
)
def test_parameters_within_laws_are_trained_too(make, options):
    fits = []
    for how in ("eager", "traced"):
        torch.manual_seed(2)
        model, guide, modules = make()
        before = [value.detach().clone() for own in modules for value in own.parameters()]
        algorithm = SVI(epochs=3, batch_size=32, learning_rate=0.01, lowering=how, **options)
        fits.append(fit_pyro(model, guide, X, algorithm))
        after = [value for own in modules for value in own.parameters()]
        assert len(fits[-1].parameters) == len(after)
        assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert fits[-1].certificate.ok
    same(*fits)


def mixture(rows):
    share = pyro.param("share", torch.full((2,), 0.5).double(), constraint=simplex)
    loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double())
    scale = pyro.param("scale", torch.ones(2, 2).double(), constraint=positive)
    with pyro.plate("rows", len(rows["x"]), dim=-1):
        z = pyro.sample("z", dist.Categorical(share), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=rows["x"])


def nothing(rows):
    """The guide of a model that has no latent but enumerated ones."""


def test_an_enumerated_mixture_reaches_scikit_learns_maximum():
    x = np.concatenate([R.normal(-2, 0.7, (120, 2)), R.normal(1.5, [1.2, 0.4], (80, 2))])
    algorithm = SVI(epochs=300, batch_size=200, learning_rate=0.05)
    found = fit_pyro(mixture, nothing, x, algorithm, dtype=torch.float64)
    best = GaussianMixture(2, covariance_type="diag", tol=1e-9, reg_covar=0, n_init=3, random_state=0).fit(x)
    assert found.log_likelihood / len(x) == pytest.approx(best.score(x), rel=1e-3)
    assert found.elbo == pytest.approx(found.log_likelihood, rel=1e-12)  # nothing is drawn
    values, errors = found.score_samples(x, return_std_error=True)
    assert not errors.any()
    assert values.sum() == pytest.approx(found.log_likelihood, rel=1e-12)
    assert found.certificate.ok
    assert "TraceEnum_ELBO" in found.certificate["pyro"].text
    found.to_param_store()
    stock = -TraceEnum_ELBO(max_plate_nesting=1).loss(mixture, nothing, {"x": torch.tensor(x)})
    assert stock == pytest.approx(found.elbo, rel=1e-10)


def test_weights_count_as_repeated_rows_do():
    times = R.integers(1, 4, size=40)
    algorithm = SVI(epochs=100, batch_size=200, learning_rate=0.05)
    counted = fit_pyro(mixture, nothing, X[:40, :2], algorithm, weights=times, dtype=torch.float64)
    repeated = fit_pyro(mixture, nothing, np.repeat(X[:40, :2], times, 0), algorithm, dtype=torch.float64)
    assert counted.n_units == repeated.n_units == times.sum()
    assert counted.log_likelihood == pytest.approx(repeated.log_likelihood, rel=1e-9)


@pytest.mark.parametrize("form", ["dictionary", "frame"])
def test_weights_may_be_a_column_by_name_which_the_functions_do_not_see(form):
    times, algorithm = R.integers(1, 4, size=40), SVI(epochs=3)
    columns = {f"c{i}": X[:40, i] for i in range(2)} | {"times": times}
    data = {"x": X[:40, :2], "times": times} if form == "dictionary" else pd.DataFrame(columns)
    named = fit_pyro(mixture, nothing, data, algorithm, weights="times", dtype=torch.float64)
    beside = fit_pyro(mixture, nothing, X[:40, :2], algorithm, weights=times, dtype=torch.float64)
    assert named.n_units == times.sum()
    assert list(named.history) == list(beside.history)
    with pytest.raises(DataError, match=r"lack the column of weights 'time'; they have .* 'times'"):
        fit_pyro(mixture, nothing, data, algorithm, weights="time")
    with pytest.raises(DataError, match="an array without names"):
        fit_pyro(mixture, nothing, X, algorithm, weights="times")
    assert set(own_rows({"x": X[:3], "times": [1, 0, 2]}, weights="times").tensors) == {"x"}


def test_densities_come_nearer_to_the_exact_ones_than_the_bound():
    # x = z + noise: N(0, 2) in each cell, and a guide that is a little off.
    def model(rows):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=positive)
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=rows["x"])

    def guide(rows):
        with pyro.plate("rows", rows["x"].shape[0], dim=-1):
            pyro.sample("z", dist.Normal(0.4 * rows["x"], 0.8))

    x = R.normal(size=50) * 1.4
    found = fit_pyro(model, guide, {"x": x}, SVI(epochs=1))
    sd = math.sqrt(float(found.parameters["scale"]) ** 2 + 1)
    exact = -0.5 * (x / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))
    values, errors = found.score_samples({"x": x}, draws=2000, return_std_error=True)
    assert (np.abs(values - exact) < 5 * errors + 1e-4).all()  # 5 errors of 50 rows; float32
    assert found.elbo < found.log_likelihood


def test_the_certificate_fails_where_the_modules_are_not_what_was_fitted():
    own = VAE()
    found = run(own, SVI(epochs=1))
    rows = own_rows(X, dtype=torch.float64).tensors
    assert certify_pair(found.pair, found.run.state, rows, 0).ok
    with torch.no_grad():
        own.decoder[2].bias += 1e-6
    assert not certify_pair(found.pair, found.run.state, rows, 0).ok


def test_pyros_own_tools_go_on_from_the_fit():
    own = VAE()
    found = run(own, SVI(epochs=3))
    found.to_param_store()
    rows = {"x": torch.tensor(X)}
    assert Predictive(poutine.uncondition(own.model), guide=own.guide, num_samples=2)(rows)["x"].shape == (
        2,
        90,
        6,
    )
    torch.manual_seed(0)  # the fit's own: the same 64 draws
    stock = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=1)
    assert -stock.loss(own.model, own.guide, rows) == pytest.approx(found.elbo, rel=1e-9)


def latent(half="model", *, plate=None, dim=-1, size=None, site="z", law=None, **options):
    """A half with one normal latent, and one thing wrong."""

    def own(rows):
        n = size or len(rows["x"])
        loc = pyro.param(f"{half} loc", torch.tensor(0.0))
        with pyro.plate("rows", n, dim=dim):
            pyro.sample(site, law or dist.Normal(loc, 1.0), **options)
            if half == "model":
                pyro.sample("x", dist.Normal(loc, 1.0), obs=rows["x"])

    return own


def shared(rows):
    loc = pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
    with pyro.plate("rows", len(rows["x"]), dim=-1):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=rows["x"])


def split_rows(rows):
    with pyro.plate("rows", 1000, subsample_size=len(rows["x"]), dim=-1):
        pyro.sample("x", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=rows["x"])


def normalised(rows, net=nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3))):  # noqa: B008
    pyro.module("net", net)
    with pyro.plate("rows", len(rows["x"]), dim=-1):
        pyro.sample("x", dist.Normal(net(rows["x"][:, None]).sum(-1), 1.0), obs=rows["x"])


def idle(rows):
    pyro.param("idle", torch.tensor(0.0))
    latent()(rows)


Z = latent("guide")
WRONG = {
    "a guide's site that the model lacks": (latent(site="y"), Z, {}, "the guide's 'z' is not in the model"),
    "a latent without a guide": (
        latent(),
        nothing,
        {},
        "the model's 'z' is neither observed nor in the guide",
    ),
    "a latent outside the plate": (shared, nothing, {}, "the model's 'loc' is outside a plate"),
    "a plate elsewhere": (
        latent(dim=-2),
        latent("guide", dim=-2),
        {},
        "'rows' at dim=-2; there is to be one",
    ),
    "a plate of fixed length": (latent(size=90), latent("guide", size=90), {}, "plate of 90 where 89 rows"),
    "a subsampling plate": (split_rows, nothing, {}, "in a plate that subsamples"),
    "axes that are no event": (
        latent(law=dist.Normal(torch.zeros(2, 1), 1.0)),
        latent("guide", law=dist.Normal(torch.zeros(2, 1), 1.0)),
        {},
        r"log-density of 'z' has the shape \(2, 90\) for 90 rows",
    ),
    "draws without a gradient": (
        latent(law=dist.Bernoulli(0.5)),
        latent("guide", law=dist.Bernoulli(0.5)),
        {},
        "drawn without a gradient",
    ),
    "an observed site in the guide": (
        latent(),
        latent("guide", obs=torch.zeros(())),
        {},
        "is observed: a guide",
    ),
    "sequential enumeration": (
        latent(law=dist.Bernoulli(0.5), infer={"enumerate": "sequential"}),
        nothing,
        {},
        "sequentially",
    ),
    "running statistics": (
        normalised,
        nothing,
        {},
        "'net.1'.*running_mean.*LayerNorm|running_mean.*LayerNorm",
    ),
    "a parameter that nothing reaches": (idle, Z, {}, "the parameter 'idle' is never reached"),
    "checkpoint": (latent(), Z, {"checkpoint": "folder"}, "a function cannot be written down"),
    "an algorithm that is no SVI": (latent(), Z, {"algorithm": "EM"}, "fitted by SVI"),
    "no function": ("model", Z, {}, "model must be a function"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_pair_is_said(name):
    model, guide, options, message = WRONG[name]
    with pytest.raises(FitError, match=message):
        fit_pyro(model, guide, X[:, 0], **{"algorithm": SVI(epochs=1), **options})
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": X, "y": X[:5]}, "different numbers of rows: {'x': 90, 'y': 5}"),
        (
            np.where(np.arange(90)[:, None] == 7, np.nan, X),
            "'x' is not finite in 1 of 90 rows, first in row 7",
        ),
        ({"x": np.array(["a", "b"])}, "'x' holds <U1 cells"),
        ({}, "rows are arrays by name"),
    ],
    ids=["lengths", "nan", "text", "empty"],
)
def test_what_is_wrong_with_the_rows_is_said(data, message):
    with pytest.raises(DataError, match=re.escape(message)):
        fit_pyro(latent(), Z, data)


def test_a_step_that_is_not_finite_is_told_by_its_site():
    def model(rows):
        scale = pyro.param("log scale", torch.tensor(0.0)).exp()
        with pyro.plate("rows", len(rows["x"]), dim=-1):
            pyro.sample("x", dist.Normal(0.0, scale), obs=rows["x"])

    with pytest.warns(UserWarning, match="non-finite"):
        found = fit_pyro(model, nothing, 9 * X[:, 0], SVI(epochs=2, learning_rate=1000.0))
    assert len(found.history) == 1
    assert found.parameters["log scale"] == pytest.approx(1000, rel=1e-4)  # what the last finite step led to
    assert found.certificate["pyro"].verdict == "-"
    assert any(re.search("model's log-density of 'x' .*its scale nowhere finite", own) for own in found.notes)
