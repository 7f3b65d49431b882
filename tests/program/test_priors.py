"""Priors on parameters: their densities are SciPy's, in the data's units and in any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.notation import parse_entry
from ppl_gen.declare.priors import (
    Beta,
    Dirichlet,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    InverseWishart,
    LogNormal,
    StudentT,
)
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free, Linear
from ppl_gen.errors import SpecError
from ppl_gen.program.laws import Law
from ppl_gen.program.program import compile_spec

RNG = np.random.default_rng(5)
REAL, POSITIVE = RNG.normal(1, 2, (3, 2)), RNG.gamma(2, 1, (3, 2))
PROBS, SIMPLEX = RNG.beta(2, 3, (3, 2)), RNG.dirichlet([1, 2, 3], (4,))
ROOTS = RNG.normal(size=(3, 2, 5))
COVS = ROOTS @ ROOTS.swapaxes(1, 2)
PSI = np.array([[2.0, 0.5], [0.5, 1.0]])

DENSITIES = [
    ("Normal", {"loc": 0.5, "scale": 2.0}, REAL, stats.norm(0.5, 2).logpdf),
    ("StudentT", {"df": 3.0, "loc": 0.5, "scale": 2.0}, REAL, stats.t(3, 0.5, 2).logpdf),
    ("LogNormal", {"loc": 0.5, "scale": 2.0}, POSITIVE, stats.lognorm(2, scale=np.exp(0.5)).logpdf),
    ("Gamma", {"concentration": 2.5, "rate": 3.0}, POSITIVE, stats.gamma(2.5, scale=1 / 3).logpdf),
    ("Exponential", {"rate": 3.0}, POSITIVE, stats.expon(scale=1 / 3).logpdf),
    ("HalfNormal", {"scale": 3.0}, POSITIVE, stats.halfnorm(scale=3).logpdf),
    ("HalfCauchy", {"scale": 3.0}, POSITIVE, stats.halfcauchy(scale=3).logpdf),
    ("InverseGamma", {"concentration": 2.5, "rate": 3.0}, POSITIVE, stats.invgamma(2.5, scale=3).logpdf),
    ("Beta", {"concentration1": 2.0, "concentration0": 5.0}, PROBS, stats.beta(2, 5).logpdf),
]


def spread(arguments, table):
    return {name: torch.full(table.shape, value, dtype=torch.float64) for name, value in arguments.items()}


@pytest.mark.parametrize(
    ("family", "arguments", "values", "logpdf"), DENSITIES, ids=[d[0] for d in DENSITIES]
)
def test_the_density_of_a_prior_is_scipys(family, arguments, values, logpdf):
    law = Law(family, spread(arguments, values))
    assert float(law.log_density(torch.tensor(values))) == pytest.approx(logpdf(values).sum(), rel=1e-12)


def test_dirichlet_and_inverse_wishart_have_scipys_normalising_constants():
    alpha = np.array([0.5, 2.0, 3.0])
    spread_alpha = torch.tensor(alpha).expand(4, 3)
    law = Law("Dirichlet", {"concentration": spread_alpha, "lacking": torch.zeros(4, dtype=torch.float64)})
    expected = sum(stats.dirichlet(alpha).logpdf(row) for row in SIMPLEX)
    assert float(law.log_density(torch.tensor(SIMPLEX))) == pytest.approx(expected, rel=1e-12)
    df, scale = torch.full((3,), 4.5, dtype=torch.float64), torch.tensor(PSI).expand(3, 2, 2)
    expected = sum(stats.invwishart(4.5, PSI).logpdf(cov) for cov in COVS)
    value = Law("InverseWishart", {"df": df, "scale": scale}).log_density(torch.tensor(COVS))
    assert float(value) == pytest.approx(expected, rel=1e-12)


MOVES = [
    ("loc", "Normal", {"loc": 0.5, "scale": 2.0}, REAL),
    ("loc", "StudentT", {"df": 3.0, "loc": 0.5, "scale": 2.0}, REAL),
    ("scale", "LogNormal", {"loc": 0.5, "scale": 2.0}, POSITIVE),
    ("scale", "Gamma", {"concentration": 2.5, "rate": 3.0}, POSITIVE),
    ("scale", "Exponential", {"rate": 3.0}, POSITIVE),
    ("scale", "HalfNormal", {"scale": 3.0}, POSITIVE),
    ("scale", "HalfCauchy", {"scale": 3.0}, POSITIVE),
    ("scale", "InverseGamma", {"concentration": 2.5, "rate": 3.0}, POSITIVE),
]


@pytest.mark.parametrize(
    ("role", "family", "arguments", "values", "squared"),
    [(*move, False) for move in MOVES] + [(*MOVES[-1], True)],
    ids=[m[1] for m in MOVES] + ["InverseGamma of the square"],
)
def test_a_prior_carried_into_other_units_differs_by_the_constant_it_says(
    role, family, arguments, values, squared
):
    shift, unit = torch.tensor([[3.0, -1.0], [0.2, 7.0]], dtype=torch.float64)
    law, natural = Law(family, spread(arguments, values), squared), torch.tensor(values)
    moved, growth = law.rescaled(role, shift, unit)
    there = (natural - shift) / unit if role == "loc" else natural / unit
    assert float(moved.log_density(there) - growth) == pytest.approx(
        float(law.log_density(natural)), rel=1e-12
    )


def test_an_inverse_wishart_carried_into_other_units_differs_by_the_constant_it_says():
    unit = torch.tensor([0.2, 7.0], dtype=torch.float64)
    df, scale = torch.full((3,), 4.5, dtype=torch.float64), torch.tensor(PSI).expand(3, 2, 2)
    law, natural = Law("InverseWishart", {"df": df, "scale": scale}), torch.tensor(COVS)
    moved, growth = law.rescaled("cov", torch.zeros(2), unit)
    there = natural / (unit[:, None] * unit)
    assert float(moved.log_density(there) - growth) == pytest.approx(
        float(law.log_density(natural)), rel=1e-12
    )


def jittered(program, seed=0):
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += torch.randn(parameter.shape, generator=noise, dtype=parameter.dtype)
    return program


def test_each_prior_of_a_program_is_evaluated_at_the_natural_parameters_of_its_own_table():
    spec = Spec(
        model={
            "u": Input(2),
            "z": Categorical(3, probs=Free(prior=Dirichlet(concentration=[2, 3, 4]))),
            "a": Normal(
                2,
                loc=By("z", prior=Normal(loc=[0, 5], scale=2)),
                scale=By("z", dim=1, prior=InverseGamma(concentration=2, rate=3)),
            ),
            "b": MultivariateNormal(2, cov=By("z", prior=InverseWishart(df=4.5, scale=PSI))),
            "c": Poisson(1, rate=By("z", prior=Gamma(concentration=2, rate=1))),
            "d": Bernoulli(2, probs=By("z", prior=Beta(concentration1=2, concentration0=1.5))),
            "e": Normal(
                1,
                loc=Linear("u", by="z", prior=StudentT(df=3, loc=0, scale=1)),
                scale=Free(prior=HalfCauchy(scale=2)),
            ),
            "s": Free(dim=1, prior=HalfNormal(scale=1)),
            "f": Normal(1, scale="s"),
            "g": Normal(1, scale="s"),
            "h": Normal(1, scale=Free(prior=LogNormal(loc=0, scale=1))),
        }
    )
    data = {n: RNG.normal(size=(6, 2)) for n in "uab"} | {n: RNG.normal(size=(6, 1)) for n in "efgh"}
    data |= {"c": RNG.poisson(2, (6, 1)), "d": np.arange(12).reshape(6, 2) % 2}
    program = jittered(compile_spec(spec, data))
    p = program.natural()
    expected = stats.dirichlet([2, 3, 4]).logpdf(p["z"]["probs"] / p["z"]["probs"].sum())
    expected += stats.norm([0, 5], 2).logpdf(p["a"]["loc"]).sum()
    expected += stats.invgamma(2, scale=3).logpdf(p["a"]["scale"] ** 2).sum()  # of the variance
    expected += sum(stats.invwishart(4.5, PSI).logpdf(cov) for cov in p["b"]["cov"])
    expected += stats.gamma(2).logpdf(p["c"]["rate"]).sum() + stats.beta(2, 1.5).logpdf(p["d"]["probs"]).sum()
    expected += (
        stats.t(3).logpdf(p["e"]["loc"]["weight"]).sum()
        + stats.halfcauchy(scale=2).logpdf(p["e"]["scale"]).sum()
    )
    expected += stats.halfnorm.logpdf(p["f"]["scale"]).sum()  # one number, used twice, has one prior
    expected += stats.lognorm(1).logpdf(p["h"]["scale"]).sum()
    assert float(program.log_prior().detach()) == pytest.approx(expected, rel=1e-11)


def test_log_prior_is_recorded_and_runs_for_all_restarts_side_by_side():
    spec = Spec(
        model={
            "z": Categorical(2, probs=Free(prior=Dirichlet(concentration=2))),
            "x": MultivariateNormal(
                2,
                loc=By("z", prior=Normal(loc=0, scale=1)),
                cov=By("z", prior=InverseWishart(df=4, scale=1)),
            ),
            "y": Normal(1, scale=By("z", prior=InverseGamma(concentration=1, rate=1))),
        }
    )
    program = jittered(compile_spec(spec, {"x": RNG.normal(size=(5, 2)), "y": RNG.normal(size=(5, 1))}))
    state = {path: value.detach() for path, value in program.state_dict().items()}
    several = {path: torch.stack([value, value + 0.1]) for path, value in state.items()}

    def log_prior(state):
        return functional_call(program, state, ("log_prior",))

    found = make_fx(vmap(log_prior))(several)(several)
    one_by_one = [log_prior({path: value[r] for path, value in several.items()}) for r in range(2)]
    torch.testing.assert_close(found, torch.stack(one_by_one), rtol=1e-14, atol=0)


def test_a_category_that_a_column_lacks_gets_no_pseudo_observation():
    spec = Spec(model={"x": Categorical(dim=2, probs=Free(prior=Dirichlet(concentration=3)))})
    program = compile_spec(spec, {"x": np.array([["a", "u"], ["b", "v"], ["c", "u"]], dtype=object)})
    with torch.no_grad():
        program.generative.layers["x:probs"].table.copy_(
            torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.4, 0.6, 1e-300]], dtype=torch.float64))
        )
    expected = stats.dirichlet([3, 3, 3]).logpdf([0.2, 0.3, 0.5]) + stats.beta(3, 3).logpdf(0.4)
    assert float(program.log_prior().detach()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"x": "Normal(2, loc=Free(prior=Normal(loc=[0, 1, 2], scale=1)))"},
            "x.loc is a table of 2, onto which the prior Normal(loc=[0, 1, 2], scale=1) does not broadcast",
        ),
        (
            {"x": "MultivariateNormal(2, cov=Free(prior=InverseWishart(df=1, scale=1)))"},
            "x.cov has 2 dimensions, so the prior InverseWishart(df=1, scale=1) needs df above 1",
        ),
        (
            {"s": "Free(prior=Normal(loc=0, scale=1))", "x": "Normal(2, scale=s)"},
            "x.scale cannot have the prior Normal(loc=0, scale=1); priors of a positive parameter: "
            "LogNormal, Gamma, Exponential, HalfNormal, HalfCauchy, InverseGamma",
        ),
    ],
)
def test_a_prior_that_does_not_fit_its_table_is_told_with_the_parameter(model, message):
    spec = Spec(model={name: parse_entry(text) for name, text in model.items()})
    with pytest.raises(SpecError) as caught:
        compile_spec(spec, {"x": np.zeros((3, 2)) + np.arange(3)[:, None]})
    assert message in str(caught.value)
