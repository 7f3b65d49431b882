"""Which algorithm runs, and the reason given for it."""

from __future__ import annotations

import numpy as np
import pytest

from ppl_gen.declare.nodes import Categorical, Input, MultivariateNormal, Normal, Poisson, StudentT
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.errors import SpecError
from ppl_gen.infer import linear_gaussian
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.route import em_obstacle, route
from ppl_gen.program.program import compile_spec

R = np.random.default_rng(0)
DATA = {
    "x": R.normal(size=(20, 2)),
    "y": R.normal(size=(20, 2)),
    "u": R.normal(size=(20, 1)),
    "c": np.arange(20) % 3,
}
Z = {"z": Categorical(2)}
U = {"u": Input(1)}
ROUTES = {
    "mixture": (Z | {"x": MultivariateNormal(loc=By("z"), cov=By("z"))}, EM, "every latent is discrete"),
    "no latent": ({"x": MultivariateNormal()}, EM, "no latent"),
    "z observed": ({"c": Categorical(3), "x": Normal(loc=By("c"))}, EM, "no latent"),
    "continuous latent": (
        {"z": Normal(1, loc=0, scale=1), "x": Normal(loc=MLP("z", [3]))},
        SVI,
        "'z' is a continuous latent, and x.loc = MLP(z, [3]) is not linear in the latents",
    ),
    "linear-Gaussian": (
        {"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"))},
        EM,
        "every latent is linear-Gaussian (z = Normal(1, loc=0, scale=1))",
    ),
    "factors with heavy tails": (
        {"z": Normal(1, loc=0, scale=1), "x": StudentT(df=4, loc=Linear("z"))},
        SVI,
        "x is StudentT, not normal",
    ),
    "regression": (Z | U | {"x": Normal(loc=Linear("u", by="z"))}, EM, "every M-step has a closed form"),
    "network": (
        U | {"x": Normal(loc=MLP("u", [3]))},
        EM,
        "x.loc = MLP(u, [3]) has no closed-form M-step: L-BFGS",
    ),
    "ordered": (Z | {"x": Normal(2, loc=By("z", ordered=True, dim=1))}, EM, "is ordered"),
    "gating": (
        U | {"z": Categorical(2, logits=Linear("u")), "x": Normal(loc=By("z"))},
        EM,
        "z.logits = Linear(u)",
    ),
    "one name for two": (
        Z | {"s": Free(), "x": Normal(2, loc=By("z"), scale="s"), "y": Normal(2, loc=By("z"), scale="s")},
        EM,
        "x and y share parameters",
    ),
    "partly written full": (
        Z | {"x": MultivariateNormal(loc=[0, Free()], cov=By("z"))},
        EM,
        "fixed in part",
    ),
    "one location, full": (
        Z | {"x": MultivariateNormal(loc=By("z", dim=1), cov=By("z"))},
        EM,
        "all dimensions",
    ),
    "sum": (Z | {"c": Categorical(3), "x": Normal(loc=By("z") + By("c"))}, EM, "By(z) + By(c)"),
    "wide gate": (
        U | {"z": Categorical(2, logits=MLP("u", [100])), "x": Normal(loc=By("z"))},
        EM,
        "z.logits = MLP(u, [100]) has no closed-form M-step: L-BFGS",
    ),
    "wide network": (U | {"x": Normal(loc=MLP("u", [100]))}, SVI, "parameters without a closed-form M-step"),
}


@pytest.mark.parametrize("name", ROUTES)
def test_the_reason_names_what_decided_it(name):
    model, algorithm, reason = ROUTES[name]
    spec = Spec(model=model)
    program = compile_spec(spec, {key: DATA[key] for key in spec.nodes if key in DATA})
    chosen, text = route(program)
    assert isinstance(chosen, algorithm)
    assert reason in text
    assert text.startswith(algorithm.__name__)
    assert (None in (em_obstacle(program), linear_gaussian.obstacle(program))) == (algorithm is EM)


def test_a_latent_count_is_refused_in_words():
    with pytest.raises(SpecError, match="'n' is a latent Poisson, whose values cannot be summed over"):
        compile_spec(Spec(model={"n": Poisson(1, rate=2), "x": Normal(loc=Linear("n"))}), {"x": DATA["x"]})


def test_a_guide_that_names_a_discrete_latent_rules_out_em():
    spec = Spec(model=Z | {"x": Normal(loc=By("z"))}, guide={"z": Categorical(2, logits=MLP("x", [4]))})
    program = compile_spec(spec, {"x": DATA["x"]})
    chosen, text = route(program)
    assert isinstance(chosen, SVI)
    assert "the guide names the discrete latent 'z'" in text
