"""The rules of the language, as far as a declaration shows them; neighbouring models are one-word diffs."""

from __future__ import annotations

import dataclasses

import pytest

from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import (
    NODES,
    Bernoulli,
    Binomial,
    Categorical,
    Input,
    MultivariateNormal,
    Normal,
    Poisson,
)
from ppl_gen.declare.notation import parse_entry
from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class, poisson_mixture, vae
from ppl_gen.declare.spec import Roles, Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear, Name, Sum, Value
from ppl_gen.errors import SpecError

Z3 = "  z: Categorical(3)\n"
LATENT = "  z: Normal(8, loc=0, scale=1)\n"

# The table of neighbouring models in language.md, rows that need no later version.
NEIGHBOURS = {
    "full": (Z3 + "  x: MultivariateNormal(loc=By(z), cov=By(z))\n", ""),
    "tied": (Z3 + "  x: MultivariateNormal(loc=By(z), cov=Free())\n", ""),
    "diagonal": (Z3 + "  x: Normal(loc=By(z), scale=By(z))\n", ""),
    "spherical": (Z3 + "  x: Normal(loc=By(z), scale=By(z, dim=1))\n", ""),
    "poisson": (Z3 + "  x: Poisson(rate=By(z))\n", ""),
    "latent class analysis": (Z3 + "  x: Categorical(2, dim=7, probs=By(z))\n", ""),
    "one line an item": (Z3 + "  a: Categorical(2, probs=By(z))\n  b: Categorical(2, probs=By(z))\n", ""),
    "mixed types": (Z3 + "  a: Normal(1, loc=By(z), scale=By(z))\n  b: Poisson(1, rate=By(z))\n", ""),
    "factor analysis": (LATENT + "  x: Normal(6, loc=Linear(z), scale=Free())\n", ""),
    "probabilistic PCA": (LATENT + "  x: Normal(6, loc=Linear(z), scale=Free(dim=1))\n", ""),
    "VAE": (
        LATENT + "  x: Normal(784, loc=MLP(z, [256]), scale=1)\n",
        "  z: Normal(8, loc=MLP(x, [256]), scale=1)\n",
    ),
    "VAE, learned variances": (
        LATENT + "  x: Normal(784, loc=MLP(z, [256]), scale=1)\n",
        "  h: MLP(x, [256])\n  z: Normal(8, loc=Linear(h), scale=Linear(h))\n",
    ),
    "binary pixels": (LATENT + "  x: Bernoulli(784, logits=MLP(z, [256]))\n", ""),
    "GM-VAE": (
        "  c: Categorical(10)\n  z: Normal(8, loc=By(c), scale=By(c))\n"
        "  x: Normal(784, loc=MLP(z, [256]), scale=1)\n",
        "",
    ),
    "conditional VAE": (
        "  u: Input(k=10)\n" + LATENT + "  x: Normal(784, loc=MLP([z, u], [256]), scale=1)\n",
        "",
    ),
    "mixture of regressions": (
        "  u: Input(1)\n" + Z3 + "  y: Normal(1, loc=Linear(u, by=z), scale=By(z))\n",
        "",
    ),
    "mixture of experts": (
        "  u: Input(1)\n  z: Categorical(2, logits=Linear(u))\n  y: Normal(1, loc=Linear(u, by=z))\n",
        "",
    ),
    "exposure offset": (
        "  u: Input(2)\n  log_hours: Input(1)\n" + Z3 + "  y: Poisson(1, rate=Linear(u, by=z) + log_hours)\n",
        "",
    ),
    "ordered": (Z3 + "  x: Normal(1, loc=By(z, ordered=True))\n", ""),
    "image-shaped": (LATENT + "  x: Bernoulli([28, 28], logits=MLP(z, [256]))\n", ""),
    "a number left to learn": (Z3 + "  x: Normal(2, loc=[0, Free()], scale=By(z))\n", ""),
    "another link": (LATENT + '  x: Poisson(5, rate=MLP(z, [16], transform="softplus"))\n', ""),
    "a named sum, used whole": (
        "  u: Input(2)\n"
        + Z3
        + "  eta: By(z) + Linear(u)\n  y: Poisson(1, rate=eta)\n  w: Poisson(1, rate=eta)\n",
        "",
    ),
}


@pytest.mark.parametrize("row", NEIGHBOURS)
def test_every_neighbouring_model_can_be_written(row):
    model, guide = NEIGHBOURS[row]
    text = "model:\n" + model + ("guide:\n" + guide if guide else "")
    spec = read_spec(text)
    assert read_spec(str(spec)) == spec
    assert spec.roles().observed == spec.leaves


def test_a_parameter_left_out_is_free_in_every_family():
    for family in NODES.values():
        if family is Binomial:  # whose totals are given, never learned
            assert Binomial(total_count=3).terms() == {"total_count": Value(3), "probs": Free()}
            continue
        terms = family().terms()
        assert set(terms.values()) <= {Free()}
        assert str(family()) == f"{family.__name__}()"
    assert Normal(2, loc=By("z")) == Normal(2, loc=By("z"), scale=Free())
    assert Categorical(3) == Categorical(3, probs=Free())
    assert MultivariateNormal(2).terms() == {"loc": Free(), "cov": Free()}
    assert MultivariateNormal(2, scale_tril=1).terms() == {"loc": Free(), "scale_tril": Value(1)}
    assert Bernoulli(2, logits=0).terms() == {"logits": Value(0)}


def test_python_values_stand_for_terms():
    node = Normal(2, loc="m", scale=[1, 2.5])
    assert node == Normal(2, loc=Name("m"), scale=Value((1, 2.5)))
    assert node.scale.shape == (2,)
    assert "a" + By("z") + 1 == Sum("a", By("z"), 1)
    assert Sum(Sum("a", "b"), "c").terms == (Name("a"), Name("b"), Name("c"))
    assert Sum(By("z", transform="exp"), "c").transform == "exp"


def test_arrays_of_any_library_stand_for_lists():
    numpy = pytest.importorskip("numpy")
    node = Normal(numpy.int64(2), loc=numpy.array([0.5, 1.0]), scale=numpy.float32(2))
    assert node == Normal(2, loc=[0.5, 1.0], scale=2)
    assert str(node) == "Normal(2, loc=[0.5, 1.0], scale=2.0)"
    assert str(Normal(loc=numpy.float64(0.5))) == "Normal(loc=0.5, scale=Free())"


def test_a_declaration_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Normal(2).dim = 3
    model = {"x": Normal(2)}
    spec = Spec(model=model)
    model["y"] = Normal(3)
    assert list(spec.model) == ["x"]


def test_parents_come_in_the_order_written_and_once():
    assert By(["b", "a"]).parents() == ("b", "a")
    assert Linear(["u", "v"], by=["z", "u"]).parents() == ("u", "v", "z")
    assert Normal(loc=Linear("u", by="z"), scale=By("z") + Linear("w")).parents() == ("u", "z", "w")
    assert Value([1, Free()]).parents() == ()


def test_widths_count_cells():
    assert Normal([28, 28]).width == 784
    assert Normal().width is None
    assert Categorical(3).width == 1
    assert Categorical(3, dim=7).width == 7
    assert Input(k=3).width is None


SHARED = Spec(
    model={
        "u": Input(1),
        "z": Categorical(3),
        "h": MLP("u", [8]),
        "eta": Sum(By("z"), Linear("h")),
        "w": Normal(1, loc="eta"),
        "x": Normal(2, loc=MLP("w", [4])),
        "y": Poisson(1, rate=By("z")),
    }
)


def test_the_graph_is_derived_through_named_terms():
    assert SHARED.node_parents("w") == ("z", "u")
    assert SHARED.leaves == ("x", "y")
    assert SHARED.inputs == ("u",)
    assert list(SHARED.named) == ["h", "eta"]
    assert list(SHARED.nodes) == ["u", "z", "w", "x", "y"]


def test_what_the_data_has_is_observed_and_what_it_lacks_is_latent():
    assert SHARED.roles() == Roles(("x", "y"), ("z", "w"), ("u",))
    assert SHARED.roles({"y", "z", "x", "u"}) == Roles(("z", "x", "y"), ("w",), ("u",))
    mapped = Spec(model=SHARED.model, columns={"x": ["a", "b"], "w": "c"})
    assert mapped.roles() == Roles(("w", "x"), ("z", "y"), ("u",))


def test_an_input_becomes_a_category_where_one_is_needed():
    spec = Spec(
        model={"u": Input(), "v": Input(), "k": Input(k=2), "x": Normal(2, loc=By("u") + Linear(["v", "k"]))}
    )
    assert [name for name in spec.inputs if spec.is_category(name)] == ["u", "k"]
    by = Spec(model={"u": Input(), "v": Input(), "x": Normal(2, loc=Linear("u", by="v"))})
    assert by.is_category("v")
    assert not by.is_category("u")
    assert SHARED.is_category("z")


def test_a_latent_of_unknown_size_may_still_be_observed_until_the_data_decide():
    spec = Spec(model={"z": Categorical(), "x": Normal(loc=By("z"))})
    assert spec.roles({"x", "z"}).latent == ()
    with pytest.raises(SpecError, match="'z' is latent, so its number of categories must be written"):
        spec.roles({"x"})


def test_a_written_guide_lacking_a_continuous_latent_is_found_when_the_data_decide():
    model = {"a": Normal(1, loc=0, scale=1), "b": Normal(1, loc="a"), "x": Normal(1, loc="b")}
    guide = {"b": Normal(loc=Linear("x"))}
    spec = Spec(model=model, guide=guide, columns={"x": "x", "a": "a"})
    assert spec.roles({"a", "x"}).latent == ("b",)
    with pytest.raises(
        SpecError, match="the guide lacks 'a', which is a continuous latent; it must name: a, b"
    ):
        spec.roles({"x"})


def test_a_discrete_latent_need_not_be_in_the_guide():
    spec = read_spec("model:\n" + NEIGHBOURS["GM-VAE"][0] + "guide:\n  z: Normal(8, loc=MLP(x, [4]))\n")
    assert spec.roles().latent == ("c", "z")


def test_a_latent_with_location_and_scale_free_is_warned_about():
    spec = Spec(model={"z": Normal(2), "x": Normal(3, loc=Linear("z"))})
    assert spec.warnings == (
        "'z' is latent with location and scale free: not identified; write loc=0, scale=1",
    )
    assert Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(3, loc=Linear("z"))}).warnings == ()


def test_order_is_part_of_a_declaration():
    first, second = Normal(1), Normal(2)
    assert Spec(model={"a": first, "b": second}) != Spec(model={"b": second, "a": first})
    assert hash(Spec(model={"a": first})) == hash(Spec(model={"a": Normal(1)}))


REPLACEMENTS = [
    ("z.k", 2, "z", "Categorical(2)"),
    ("z.k", "2", "z", "Categorical(2)"),
    ("x.cov", "Free()", "x", "MultivariateNormal(loc=By(z), cov=Free())"),
    ("x.scale_tril", "By(z)", "x", "MultivariateNormal(loc=By(z), scale_tril=By(z))"),
    ("x.loc.dim", 1, "x", "MultivariateNormal(loc=By(z, dim=1), cov=By(z))"),
    ("x.loc.parents", "z", "x", "MultivariateNormal(loc=By(z), cov=By(z))"),
    ("x", "Normal(loc=By(z))", "x", "Normal(loc=By(z), scale=Free())"),
    ("x", Poisson(rate=By("z")), "x", "Poisson(rate=By(z))"),
]


@pytest.mark.parametrize(("path", "value", "name", "text"), REPLACEMENTS)
def test_one_option_can_be_changed_by_its_path(path, value, name, text):
    mixture = gaussian_mixture(3)
    assert mixture.replace(path, value).model[name] == parse_entry(text)
    assert mixture == gaussian_mixture(3)


def test_a_latents_size_is_changed_in_the_guide_with_it():
    spec = read_spec("vae").replace("z.dim", 2)
    assert spec.model["z"].dim == spec.guide["z"].dim == 2
    assert spec.replace("guide.z.scale", "Linear(x)").guide["z"].scale == Linear("x")


WRONG_PATHS = [
    ("y.k", 2, "'y.k': the model has no 'y'; it has: z, x"),
    ("z.kk", 2, "'z.kk': Categorical(3) has no 'kk'; did you mean 'k'? it has: k, dim, probs, logits"),
    ("z.k.k", 2, "'z.k.k': 3 has no options, so 'k' leads nowhere"),
    ("guide.z.dim", 2, "'guide.z.dim' names the guide, but none is written"),
    ("z.k", 0, "Categorical's k must be a whole number from 1 to 2147483647, got 0"),
    ("z", "Normal(2)", "'x' needs a category, but 'z' is the real node Normal(2); "),
    ("z.k", "2 *", "not in the notation: invalid syntax"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG_PATHS)
def test_a_path_that_leads_nowhere_is_told_with_the_choices(path, value, message):
    with pytest.raises(SpecError) as caught:
        gaussian_mixture(3).replace(path, value)
    assert str(caught.value).startswith(message)


PHRASES = [
    (gaussian_mixture(3), "gaussian_mixture"),
    (gaussian_mixture(3, "tied"), "gaussian_mixture_tied"),
    (gaussian_mixture(3, "diagonal"), "gaussian_mixture_diagonal"),
    (gaussian_mixture(3, "spherical"), "gaussian_mixture_spherical"),
    (poisson_mixture(2), "poisson_mixture"),
    (latent_class(3), "latent_class"),
    (vae(8, likelihood="bernoulli"), "vae_bernoulli"),
]


@pytest.mark.parametrize(("spec", "name"), PHRASES, ids=[name for _, name in PHRASES])
def test_a_phrase_is_the_shipped_model_of_its_name(spec, name):
    assert spec == read_spec(name)


def test_a_phrase_with_an_unknown_mode_names_the_modes():
    with pytest.raises(
        SpecError, match=r"covariance 'ful' is not known; did you mean 'full'\? known: full, tied, diag"
    ):
        gaussian_mixture(3, "ful")
    with pytest.raises(SpecError, match="likelihood 'xyz' is not known; known: normal, diagonal, bernoulli"):
        vae(2, likelihood="xyz")
    assert vae(2, (8,), "diagonal").model["x"] == Normal(loc=Linear("h"), scale=Linear("h"))
    assert vae(2).model["x"] == Normal(loc=MLP("z", [256]), scale=1)
