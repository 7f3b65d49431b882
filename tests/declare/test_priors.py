"""Priors as they are written: what can stand after `prior=`, and which parameters each fits."""

from __future__ import annotations

import pytest

import ppl_gen
from ppl_gen.declare import nodes
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.notation import parse_entry
from ppl_gen.declare.priors import PRIORS, Normal, Prior
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free
from ppl_gen.errors import SpecError

FITTING = "LogNormal, Gamma, Exponential, HalfNormal, HalfCauchy, InverseGamma"
ALL = ", ".join(PRIORS)


def test_the_node_normal_with_numbers_is_the_prior_normal():
    by_node = By("z", prior=nodes.Normal(loc=0, scale=10))
    assert (
        by_node
        == By("z", prior=Normal(loc=0, scale=10))
        == parse_entry("By(z, prior=Normal(loc=0, scale=10))")
    )
    assert isinstance(by_node.prior, Prior)
    assert str(by_node) == "By(z, prior=Normal(loc=0, scale=10))"


def test_every_prior_can_be_written_from_the_public_names():
    # Where a word is a node too, the node stands for it.
    assert all(hasattr(ppl_gen, name) for name in PRIORS)


def test_a_declaration_with_priors_is_read_from_yaml_and_written_back():
    text = (
        "model:\n"
        "  z: Categorical(2, probs=Free(prior=Dirichlet(concentration=[1, 2])))\n"
        "  x: Normal(1, loc=By(z, prior=Normal(loc=0, scale=10)), scale=Free(prior=HalfNormal(scale=2)))\n"
    )
    assert str(read_spec(text)) == text


def test_a_free_parameter_with_a_prior_is_printed():
    node = parse_entry("Normal(1, scale=Free(prior=HalfNormal(scale=1)))")
    assert str(node) == "Normal(1, loc=Free(), scale=Free(prior=HalfNormal(scale=1)))"


MISTAKES = [
    ("Free(prior=1)", f"Free's prior must be one of {ALL}, with numbers as arguments, got 1"),
    ("Free(prior=z)", f"Free's prior must be one of {ALL}, with numbers as arguments, got z"),
    ("Free(prior=Poisson(rate=1))", f"Free's prior cannot be Poisson(rate=1); priors: {ALL}"),
    (
        "Free(prior=Normal(2, loc=0, scale=1))",
        "Free's prior takes no size, which is the parameter's, got Normal(2, loc=0, scale=1)",
    ),
    (
        "Free(prior=Normal(loc=By(z), scale=1))",
        "Free's prior takes numbers as the arguments of Normal, and there are no hyperpriors; its loc is By(z)",
    ),
    ("Free(prior=HalfNormal(scale=0))", "HalfNormal's scale must be positive, got 0"),
    (
        "Free(prior=HalfNormal(scal=1))",
        "HalfNormal has no option 'scal'; did you mean 'scale'? its options: scale",
    ),
    ("Free(prior=HalfNormal())", "HalfNormal needs its scale; its options: scale"),
    (
        "Free(prior=InverseWishart(df=2, scale=[[1, 2], [2, 1]]))",
        "InverseWishart's scale must be a positive definite matrix",
    ),
    (
        "Normal(scale=By(z, prior=Normal(loc=0, scale=1)))",
        f"Normal's scale cannot have the prior Normal(loc=0, scale=1); priors of a positive parameter: {FITTING}",
    ),
    (
        "Normal(loc=Linear(u, prior=HalfNormal(scale=1)))",
        "Normal's loc cannot have the prior HalfNormal(scale=1); priors of a real parameter: Normal, StudentT",
    ),
    (
        "MultivariateNormal(2, scale_tril=Free(prior=InverseWishart(df=3, scale=1)))",
        "MultivariateNormal's scale_tril cannot have the prior InverseWishart(df=3, scale=1); "
        "no prior is known for a lower cholesky parameter",
    ),
    (
        "Categorical(3, probs=Free(prior=Dirichlet(concentration=[1, 2])))",
        "Categorical's probs has 3 categories, but the prior Dirichlet(concentration=[1, 2]) has 2",
    ),
    (
        "Normal(loc=Beta(concentration1=1, concentration0=1))",
        "Normal's loc must be a term, got the prior Beta(concentration1=1, concentration0=1); "
        "write it as in Free(prior=...)",
    ),
    ("HalfNormal(scale=1)", "HalfNormal is a prior, as in Free(prior=HalfNormal(...))"),
    (
        "Dirichlet(20, concentration=0.5)",
        "Dirichlet is a prior, as in Free(prior=Dirichlet(...)); as a node it is not supported yet",
    ),
    ("MLP(u, [2], prior=Normal(loc=0, scale=1))", "MLP has no option 'prior'"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[text[:50] for text, _ in MISTAKES])
def test_a_mistaken_prior_is_told_with_the_parameter_and_the_choices(text, message):
    with pytest.raises(SpecError) as caught:
        parse_entry(text)
    assert str(caught.value).startswith(message)


def test_a_guide_has_no_priors():
    model = {"z": nodes.Normal(1, loc=0, scale=1), "x": nodes.Normal(1, loc="z", scale=1)}
    guide = {"z": nodes.Normal(1, loc=Free(prior=Normal(loc=0, scale=1)))}
    with pytest.raises(SpecError, match="'z' has a prior in the guide"):
        Spec(model=model, guide=guide)


def test_the_words_of_priors_are_no_names():
    with pytest.raises(SpecError, match="'HalfNormal' is a word of the language"):
        Spec(model={"HalfNormal": nodes.Normal(2)})
