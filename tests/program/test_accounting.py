"""How many identified numbers a model has, counted by hand or as published."""

from __future__ import annotations

import numpy as np
import pytest

from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, Normal, Poisson
from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class, poisson_mixture
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.program.program import compile_spec

N = 12
R = np.random.default_rng(0)
DATA = {
    "x": R.normal(size=(N, 2)),
    "y": R.normal(size=(N, 1)),
    "six": R.normal(size=(N, 6)),
    "u": R.normal(size=(N, 2)),
    "v": R.normal(size=(N, 1)),
    "a": np.arange(N) % 3,
    "b": np.arange(N) % 2,
    "c": np.arange(N) % 3,
    "items": R.integers(0, 2, (N, 7)),
    "uneven": np.c_[np.arange(N) % 2, np.arange(N) % 3] + 1,
    "n": R.poisson(3, (N, 1)).astype(float),
}


def model(**entries):
    return Spec(model=entries)


def latent(q: int) -> dict[str, Normal]:
    return {"z": Normal(q, loc=0, scale=1)}


A, B, Z = Categorical(3), Categorical(2), Categorical(3)
WEIGHTS = 2 + 1  # of an observed Categorical(3) and of a Categorical(2)
COUNTED = {
    # mclust's table for two dimensions and three classes: VVV 17, EEE 11, VVI 14, EEI 10, VII 11, EII 9.
    "mclust VVV,3": (gaussian_mixture(3), 17),
    "mclust EEE,3": (gaussian_mixture(3, "tied"), 11),
    "mclust VVI,3": (gaussian_mixture(3, "diagonal"), 14),
    "mclust EEI,3": (model(z=Z, x=Normal(loc=By("z"))), 10),
    "mclust VII,3": (gaussian_mixture(3, "spherical"), 11),
    "mclust EII,3": (model(z=Z, x=Normal(loc=By("z"), scale=Free(dim=1))), 9),
    # poLCA, carcinoma: 3 classes of 7 binary items, 23 parameters.
    "poLCA nclass=3": (model(z=Z, items=Categorical(probs=By("z"))), 23),
    "items of 2 and of 3 levels": (model(z=Z, uneven=Categorical(probs=By("z"))), 2 + 3 * (1 + 2)),
    "Poisson": (model(z=B, n=Poisson(rate=By("z"))), 3),
    "weights written": (model(z=Categorical(2, probs=[0.3, 0.7]), n=Poisson(rate=By("z"))), 2),
    "weights by group": (
        model(b=B, z=Categorical(3, probs=By("b")), y=Normal(1, loc=By("z"))),
        1 + 2 * 2 + 3 + 1,
    ),
    "partly written": (model(x=Normal(2, loc=[0, Free()], scale=[Free(), 1])), 2),
    "logits of linear": (model(u=Input(2), c=Categorical(3, logits=Linear("u"))), 2 * 3),
    "logits of two": (
        model(u=Input(2), v=Input(1), c=Categorical(3, logits=Linear("u") + Linear("v"))),
        2 * 4,
    ),
    "logits of tables": (model(a=A, b=B, c=Categorical(3, logits=By("a") + By("b"))), WEIGHTS + 2 * (3 + 1)),
    "logits of a network": (model(u=Input(2), c=Categorical(3, logits=MLP("u", [4]))), 12 + 15),
    "regression": (model(u=Input(2), y=Normal(1, loc=Linear("u"))), 3 + 1),
    "analysis of covariance": (model(a=A, u=Input(2), y=Normal(1, loc=By("a") + Linear("u"))), 2 + 3 + 2 + 1),
    "two-way layout": (model(a=A, b=B, y=Normal(1, loc=By("a") + By("b"))), WEIGHTS + 3 + 1 + 1),
    "mixture of regressions": (
        model(u=Input(2), z=B, y=Normal(1, loc=Linear("u", by="z"), scale=By("z"))),
        9,
    ),
    "one name used twice": (model(s=Free(), x=Normal(2, scale="s"), u=Normal(2, scale="s")), 2 + 2 + 2),
    "factor analysis": (model(**latent(2), six=Normal(6, loc=Linear("z"), scale=Free())), 12 + 6 + 6 - 1),
    "probabilistic PCA": (
        model(**latent(3), six=Normal(6, loc=Linear("z"), scale=Free(dim=1))),
        18 + 6 + 1 - 3,
    ),
    "no rotation with known scales": (
        model(z=Normal(2, loc=0, scale=[1, 2]), six=Normal(6, loc=Linear("z"), scale=1)),
        12 + 6,
    ),
    "decoder": (model(**latent(2), x=Normal(2, loc=MLP("z", [4]), scale=1)), 12 + 10),
    "shared trunk": (
        model(**latent(2), h=MLP("z", [4]), x=Normal(2, loc=Linear("h"), scale=Linear("h"))),
        12 + 10 + 10,
    ),
    "nothing": (model(x=Normal(2, loc=0, scale=1)), 0),
    "Bernoulli": (model(z=Bernoulli(2), x=Normal(2, loc=By("z"))), 2 + 4 * 2 + 2),
}


@pytest.mark.parametrize("name", COUNTED)
def test_degrees_of_freedom_count_identified_numbers_only(name):
    spec, expected = COUNTED[name]
    program = compile_spec(spec, {key: DATA[key] for key in spec.nodes if key in DATA})
    assert program.n_parameters == expected


def test_the_phrasebooks_models_count_as_in_the_papers():
    assert compile_spec(poisson_mixture(2), {"x": DATA["n"]}).n_parameters == 3
    assert compile_spec(latent_class(4), {"x": DATA["items"]}).n_parameters == 31
