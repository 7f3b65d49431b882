"""A guide that is not written is derived by rule 20, and is a declaration like one written by hand."""

from __future__ import annotations

import pytest

from ppl_gen.declare.files import read_spec
from ppl_gen.declare.guide import derive_guide
from ppl_gen.declare.spec import Spec

# model, names the data has (None: the leaves), the guide that follows
DERIVED = {
    "one network": (
        ["z: Normal(8, loc=0, scale=1)", "x: Normal(loc=MLP(z, [256]), scale=1)"],
        None,
        ["z_trunk: MLP(x, [256])", "z: Normal(8, loc=Linear(z_trunk), scale=Linear(z_trunk))"],
    ),
    "hidden sizes reversed, activation kept": (
        ["z: Normal(8, loc=0, scale=1)", 'x: Bernoulli(logits=MLP(z, [32, 64], activation="tanh"))'],
        None,
        [
            'z_trunk: MLP(x, [64, 32], activation="tanh")',
            "z: Normal(8, loc=Linear(z_trunk), scale=Linear(z_trunk))",
        ],
    ),
    "an affine path needs no trunk": (
        ["z: Normal(2, loc=0, scale=1)", "x: Normal(6, loc=Linear(z))"],
        None,
        ["z: Normal(2, loc=Linear(x), scale=Linear(x))"],
    ),
    "an image comes back through convolutions": (
        ["z: Normal(8, loc=0, scale=1)", "x: Bernoulli([28, 28], logits=Conv(z, [64, 32], kernel=3))"],
        None,
        [
            "z_x_trunk: Conv(x, [32, 64], kernel=3)",
            "z: Normal(8, loc=Linear(z_x_trunk), scale=Linear(z_x_trunk))",
        ],
    ),
    "through hidden layers and convolutions, beside an Input": (
        [
            "u: Input(k=10)",
            "z: Normal(8, loc=0, scale=1)",
            "h: MLP([z, u], [256])",
            "x: Bernoulli([28, 28], logits=Conv(h, [64, 32]))",
        ],
        None,
        [
            "z_x_trunk: Conv(x, [32, 64])",
            "z_trunk: MLP([z_x_trunk, u], [256])",
            "z: Normal(8, loc=Linear(z_trunk), scale=Linear(z_trunk))",
        ],
    ),
    "its own family": (
        ["z: MultivariateNormal(2, loc=0, cov=1)", "x: Normal(6, loc=Linear(z))"],
        None,
        ["z: MultivariateNormal(2, loc=Linear(x), scale_tril=Linear(x))"],
    ),
    "last first, through a latent between": (
        [
            "a: Normal(2, loc=0, scale=1)",
            "b: Normal(3, loc=MLP(a, [4]), scale=1)",
            "x: Normal(6, loc=MLP(b, [16]))",
        ],
        None,
        [
            "b_trunk: MLP(x, [16])",
            "b: Normal(3, loc=Linear(b_trunk), scale=Linear(b_trunk))",
            "a_trunk: MLP([x, b], [16, 4])",
            "a: Normal(2, loc=Linear(a_trunk), scale=Linear(a_trunk))",
        ],
    ),
    "Inputs are seen": (
        ["u: Input(k=10)", "z: Normal(8, loc=0, scale=1)", "x: Normal(loc=MLP([z, u], [256]), scale=1)"],
        None,
        ["z_trunk: MLP([x, u], [256])", "z: Normal(8, loc=Linear(z_trunk), scale=Linear(z_trunk))"],
    ),
    "a discrete latent is left out": (
        ["c: Categorical(10)", "z: Normal(8, loc=By(c), scale=By(c))", "x: Normal(loc=Linear(z))"],
        None,
        ["z: Normal(8, loc=Linear(x), scale=Linear(x))"],
    ),
    "through a discrete latent between": (
        ["z: Normal(1, loc=0, scale=1)", "c: Categorical(2, logits=Linear(z))", "x: Normal(loc=By(c))"],
        None,
        ["z: Normal(1, loc=Linear(x), scale=Linear(x))"],
    ),
    "several leaves, only those that depend on it": (
        [
            "a: Normal(1, loc=0, scale=1)",
            "v: Normal(1)",
            "x: Normal(2, loc=Linear(a))",
            "y: Poisson(1, rate=MLP(a, [8]))",
        ],
        None,
        ["a_trunk: MLP([x, y], [8])", "a: Normal(1, loc=Linear(a_trunk), scale=Linear(a_trunk))"],
    ),
    "networks behind named terms count": (
        [
            "z: Normal(2, loc=0, scale=1)",
            "h: MLP(z, [8])",
            "g: MLP(h, [16])",
            "x: Normal(loc=Linear(g), scale=Linear(g))",
        ],
        None,
        ["z_trunk: MLP(x, [16, 8])", "z: Normal(2, loc=Linear(z_trunk), scale=Linear(z_trunk))"],
    ),
    "what is observed in between stops the search": (
        ["a: Normal(2, loc=0, scale=1)", "m: Normal(1, loc=Linear(a))", "x: Normal(6, loc=MLP(m, [16]))"],
        {"m", "x"},
        ["a: Normal(2, loc=Linear(m), scale=Linear(m))"],
    ),
    "nothing observed depends on it": (
        ["a: Normal(2, loc=0, scale=1)", "b: Normal(1, loc=Linear(a))", "x: Normal(6)"],
        {"x"},
        ["b: Normal(1)", "a: Normal(2, loc=Linear(b), scale=Linear(b))"],
    ),
    "a trunk's name is not taken twice": (
        ["z: Normal(2, loc=0, scale=1)", "z_trunk: MLP(z, [8])", "x: Normal(loc=Linear(z_trunk))"],
        None,
        ["z_trunk_: MLP(x, [8])", "z: Normal(2, loc=Linear(z_trunk_), scale=Linear(z_trunk_))"],
    ),
    "image-shaped latents keep their shape": (
        ["z: Normal([2, 3], loc=0, scale=1)", "x: Normal(loc=Linear(z))"],
        None,
        ["z: Normal([2, 3], loc=Linear(x), scale=Linear(x))"],
    ),
    "no continuous latent, no guide": (["z: Categorical(3)", "x: Normal(loc=By(z))"], None, []),
}


@pytest.mark.parametrize("case", DERIVED)
def test_the_guide_that_follows_from_the_model(case):
    lines, present, expected = DERIVED[case]
    spec = read_spec("model:\n" + "".join(f"  {line}\n" for line in lines))
    guide = derive_guide(spec, spec.roles(present))
    assert [f"{name}: {entry}" for name, entry in guide.items()] == expected


@pytest.mark.parametrize(
    "case", [name for name, (_, present, guide) in DERIVED.items() if guide and not present]
)
def test_a_derived_guide_could_have_been_written(case):
    lines, present, _ = DERIVED[case]
    spec = read_spec("model:\n" + "".join(f"  {line}\n" for line in lines))
    guide = derive_guide(spec, spec.roles(present))
    assert Spec(model=spec.model, guide=guide).guide == guide


def test_a_ladder_of_shared_quantities_takes_no_longer_than_its_length():
    rungs = "".join(
        f"  a{i}: MLP([a{i - 1}, b{i - 1}], [2])\n  b{i}: MLP([a{i - 1}, b{i - 1}], [2])\n"
        for i in range(1, 200)
    )
    spec = read_spec(
        "model:\n  z: Normal(2, loc=0, scale=1)\n  a0: MLP(z, [2])\n  b0: MLP(z, [2])\n"
        + rungs
        + "  x: Normal(2, loc=Linear([a199, b199]))\n"
    )
    assert spec.node_parents("x") == ("z",)
    assert derive_guide(spec, spec.roles())["z_trunk"].hidden == (2,) * 200
