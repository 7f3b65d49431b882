"""Every mistake in a declaration is a SpecError in the user's words, never a pydantic or Python one."""

from __future__ import annotations

import pytest

from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.notation import parse_entry
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear, Name, Sum, Value, as_term
from ppl_gen.errors import SpecError

MISTAKES = [
    # unknown options, positions, and things written twice
    (
        lambda: Normal(2, lo=By("z")),
        "Normal has no option 'lo'; did you mean 'loc'? its options: dim, loc, scale",
    ),
    (lambda: Poisson(2, xyz=1), "Poisson has no option 'xyz'; its options: dim, rate"),
    (
        lambda: By("z", dm=1),
        "By has no option 'dm'; did you mean 'dim'? its options: parents, dim, ordered, transform, prior",
    ),
    (
        lambda: Normal(2, 0, 1),
        "Normal takes dim by position, everything else by keyword; its options: dim, loc, scale",
    ),
    (
        lambda: MLP("z", [2], "tanh"),
        "MLP takes parents and hidden by position, everything else by keyword; "
        "its options: parents, hidden, activation, by, dim, transform",
    ),
    (
        lambda: Free(1),
        "Free takes nothing by position, everything else by keyword; its options: dim, transform, prior",
    ),
    (lambda: Normal(2, dim=2), "Normal's dim: written twice, by position and by keyword"),
    (
        lambda: MLP("z"),
        "MLP needs its hidden; its options: parents, hidden, activation, by, dim, transform",
    ),
    # sizes
    (lambda: Normal(0), "Normal's dim must be a whole number from 1 to 2147483647, got 0"),
    (lambda: Normal(True), "Normal's dim must be a whole number, got True"),
    (lambda: Normal([]), "Normal's dim must be a size or a list of sizes, got an empty list"),
    (lambda: Categorical(2.5), "Categorical's k must be a whole number, got 2.5"),
    (lambda: Input(k="a"), "Input's k must be a whole number, got 'a'"),
    (
        lambda: MLP("z", 256),
        "MLP's hidden must be a list of at least one hidden size, as in [256], got 256",
    ),
    (
        lambda: MLP("z", []),
        "MLP's hidden must be a list of at least one hidden size, as in [256], got []",
    ),
    (lambda: MultivariateNormal([2, 2]), "MultivariateNormal's dim must be one number, not a list"),
    # parents
    (lambda: By(3), "By's parents must be a name or a list of names, got 3"),
    (lambda: By([]), "By's parents must be a name or a list of names, got an empty list"),
    (lambda: By(["a", "a"]), "By's parents must be different names, got 'a' twice"),
    (lambda: By("a b"), "By's parents must be a Python identifier and no keyword, got 'a b'"),
    (lambda: Linear("class"), "Linear's parents must be a Python identifier and no keyword, got 'class'"),
    (lambda: Name("ﬁ"), "Name's name must be written in Unicode's composed form, 'fi'"),
    (
        lambda: Linear(MLP("z", [2])),
        "Linear's parents must be a name or a list of names, got MLP(z, [2]); "
        "give it a line and a name of its own",
    ),
    # choices
    (
        lambda: MLP("z", [2], activation="rel"),
        "MLP's activation must be one of relu, tanh, sigmoid, softplus, elu, gelu, silu, leaky_relu, "
        "got 'rel'; did you mean 'relu'?",
    ),
    (
        lambda: Free(transform="log"),
        "Free's transform must be one of identity, exp, softplus, sigmoid, softmax, got 'log'",
    ),
    (lambda: By("z", ordered=1), "By's ordered must be True or False, got 1"),
    (
        lambda: Poisson(rate=Linear("u", transform="identity")),
        "Poisson's rate cannot have transform='identity'; those whose values fit: exp, softplus, sigmoid",
    ),
    (
        lambda: Sum(Free(transform="exp"), By("z", transform="softplus")),
        'the parts of Free(transform="exp") + By(z, transform="softplus") name different transforms; '
        "a sum has one",
    ),
    # numbers
    (lambda: Normal(2, scale=-1), "Normal's scale must be positive, got -1"),
    (lambda: Poisson(rate=[1, 0]), "Poisson's rate must be positive, got [1, 0]"),
    (lambda: Bernoulli(probs=1.5), "Bernoulli's probs must lie between 0 and 1, got 1.5"),
    (lambda: Normal(2, loc=float("nan")), "Normal's loc must be finite, got nan"),
    (lambda: Normal(2, loc=[[1, 2], [3]]), "Normal's loc must have rows of one length, got [(1, 2), (3,)]"),
    (
        lambda: Normal(2, loc=[1, 2, 3]),
        "Normal's loc must fit the node's dim=2, got numbers of shape [3]: [1, 2, 3]",
    ),
    (lambda: Categorical(2, probs=[0.5, 0.6]), "Categorical's probs must sum to 1, got 1.1 in [0.5, 0.6]"),
    (
        lambda: Categorical(3, probs=[0.5, 0.5]),
        "Categorical's probs must have 3 numbers, one a category, got 2: [0.5, 0.5]",
    ),
    (
        lambda: Categorical(3, probs=0.5),
        "Categorical's probs must be one probability a category, summing to 1, got 0.5",
    ),
    (
        lambda: Categorical(2, probs=[1, Free()]),
        "Categorical's probs must leave something for Free(): the numbers sum to 1 in [1, Free()]",
    ),
    (
        lambda: MultivariateNormal(2, cov=[[1, 2], [2, 1]]),
        "MultivariateNormal's cov must be a positive definite matrix",
    ),
    (
        lambda: MultivariateNormal(2, cov=[[1, 0.5], [0, 1]]),
        "MultivariateNormal's cov must be a symmetric matrix",
    ),
    (
        lambda: MultivariateNormal(3, cov=[[1]]),
        "MultivariateNormal's cov must be 3 by 3 as the node's dim=3, got 1 by 1",
    ),
    (
        lambda: MultivariateNormal(scale_tril=[[1, 1], [0, 1]]),
        "MultivariateNormal's scale_tril must be a lower triangular matrix",
    ),
    # combinations
    (lambda: Bernoulli(2, probs=0.5, logits=0), "Bernoulli takes probs or logits, not both"),
    (
        lambda: MultivariateNormal(2, cov=1, scale_tril=1),
        "MultivariateNormal takes cov or scale_tril, not both",
    ),
    (
        lambda: Normal(2, loc=By("z", dim=3)),
        "Normal's loc has dim=3 in By(z, dim=3), but the node has dim=2; write 1 or leave it out",
    ),
    (
        lambda: Normal(2, loc=By("z", ordered=True)),
        "Normal's loc cannot be ordered: ordered=True needs one number a category, as with dim=1",
    ),
    (lambda: By(["a", "b"], ordered=True), "By(..., ordered=True) has one parent and dim 1"),
    (
        lambda: Normal(2, loc=Normal(2)),
        "Normal's loc must be a term, got the node Normal(2); give it a line and a name of its own",
    ),
    (
        lambda: as_term(None),
        "must be a number, a list of numbers, Free(), By(...), Linear(...), MLP(...), Conv(...), Net(...), "
        "a name or a sum of these, got None",
    ),
    (lambda: Sum("a"), "Sum adds at least two terms, got 1"),
    (
        lambda: By("z") + True,
        "what is added must be a number, a list of numbers, Free(), By(...), Linear(...), "
        "MLP(...), Conv(...), Net(...), a name or a sum of these, got True",
    ),
    # reserved for later
    (
        lambda: Normal(2, per="school"),
        "Normal's per is not supported yet; it is reserved for a later version",
    ),
    (lambda: By("z", [0, 1]), "By's entries is not supported yet; it is reserved for a later version"),
    (
        lambda: Linear("z", weight=[[1, 0]]),
        "Linear's weight other than Free() is not supported yet; it is reserved for a later version",
    ),
    (
        lambda: parse_entry("Ordinal(2)"),
        "Ordinal is not supported yet; it is reserved for a later version",
    ),
    (
        lambda: parse_entry("Categorical(3, probs=By(Lag(h)))"),
        "Lag is not supported yet; it is reserved for a later version",
    ),
]


@pytest.mark.parametrize(("declare", "message"), MISTAKES, ids=[m[:60] for _, m in MISTAKES])
def test_a_mistake_is_told_with_its_place_and_the_choices(declare, message):
    with pytest.raises(SpecError) as caught:
        declare()
    assert str(caught.value) == message


Z, X = Normal(2, loc=0, scale=1), Normal(3, loc=Linear("z"))
MIX = {"z": Categorical(3), "x": Normal(loc=By("z"))}

WRONG_SPECS = [
    ({"model": {}}, "model must map names to nodes and terms, at least one"),
    ({"model": {"x": 3}}, "'x' must be a node, as Normal(2), or a term, as MLP(z, [256]), got 3"),
    (
        {"model": {"x": Value(3)}},
        "'x' must be a node, as Normal(2), or a term, as MLP(z, [256]), got 3",
    ),
    ({"model": {"Normal": Normal(2)}}, "'Normal' is a word of the language, not a name"),
    ({"model": {"StudentT": Normal(2)}}, "'StudentT' is a word of the language, not a name"),
    ({"model": {"guide": Normal(2)}}, "'guide' is a word of the language, not a name"),
    ({"model": {"a b": Normal(2)}}, "a name must be a Python identifier and no keyword, got 'a b'"),
    ({"model": {"for": Normal(2)}}, "a name must be a Python identifier and no keyword, got 'for'"),
    ({"model": {"u": Input(2)}}, "a model needs at least one node that is not an Input"),
    # references
    (
        {"model": {"z": Categorical(3), "u": Input(1), "x": Normal(loc=By("c"))}},
        "'x' refers to 'c', which is not declared above it; declared so far: z, u",
    ),
    (
        {"model": {"weight": Categorical(3), "x": Normal(loc=By("wieght"))}},
        "'x' refers to 'wieght', which is not declared above it; "
        "did you mean 'weight'? declared so far: weight",
    ),
    (
        {"model": {"x": Normal(loc=By("z")), "z": Categorical(3)}},
        "'x' refers to 'z', which is not declared above it but below it; declared so far: nothing",
    ),
    (
        {"model": {"a": Normal(1, loc="c"), "b": Normal(1, loc="a"), "c": Normal(1, loc="b")}},
        "'a' refers to 'c' in a cycle: a -> c -> b -> a",
    ),
    ({"model": {"x": Normal(1, loc="x")}}, "'x' refers to 'x' in a cycle: x -> x"),
    # uses
    (
        {"model": {"z": Z, "x": Normal(loc=By("z"))}},
        "'x' needs a category, but 'z' is the real node Normal(2, loc=0, scale=1); "
        "write Linear(z) or MLP(z, [...]) for a function of it",
    ),
    (
        {"model": {"n": Poisson(1), "z": Normal(1), "x": Normal(loc=Linear("z", by="n"))}},
        "'x' needs a category, but 'n' is the count node Poisson(1); "
        "write Linear(n) or MLP(n, [...]) for a function of it",
    ),
    (
        {"model": {"z": Z, "h": Linear("z"), "x": Normal(loc=MLP("h", [2]))}},
        "'x' uses 'h' as a value, so its width must be written: h: Linear(z, dim=...)",
    ),
    (
        {"model": {"h": Free(), "x": Normal(loc=Sum("h", 1))}},
        "'x' uses 'h' as a value, so its width must be written: h: Free(dim=...)",
    ),
    (
        {"model": {"z": Categorical(3), "x": Normal(loc="z")}},
        "'x' uses the category 'z' as a number; write By(z) for one value a category",
    ),
    (
        {"model": {"z": Z, "x": Normal(3, loc="z")}},
        "'x' is 3 wide (Normal(3, loc=z, scale=Free())), but 'z' is 2 wide (Normal(2, loc=0, scale=1))",
    ),
    # guides
    (
        {"model": {"z": Z, "x": X}, "guide": {"zz": Z}},
        "the guide names 'zz', which the model does not declare; did you mean 'z'? its latents: z",
    ),
    (
        {"model": {"z": Z, "x": X}, "guide": {"x": X}},
        "'x' is a leaf of the model, observed; a guide samples latents",
    ),
    (
        {"model": {"u": Input(1), "z": Z, "x": X}, "guide": {"u": Input(1)}},
        "'u' is an Input; a guide samples latents",
    ),
    (
        {"model": {"z": Z, "x": X}, "guide": {"z": Bernoulli(2)}},
        "'z' is Bernoulli(2) in the guide, but Normal(2, loc=0, scale=1) in the model",
    ),
    (
        {"model": {"z": Z, "x": X}, "guide": {"z": Normal(3)}},
        "'z' has dim=3 in the guide (Normal(3)), but dim=2 in the model (Normal(2, loc=0, scale=1))",
    ),
    (
        {"model": {"z": Z, "x": X}, "guide": {"z": MLP("x", [2])}},
        "'z' is a node of the model; in the guide it must be a node too",
    ),
    (
        {"model": {"z": Z, "x": X}, "guide": {"z": Normal(loc=Linear("h")), "h": MLP("x", [2])}},
        "'z' in the guide refers to 'h', which is declared below it; a guide sees: x",
    ),
    (
        {
            "model": {"z": Z, "d": MLP("z", [2]), "x": Normal(loc=Linear("d"))},
            "guide": {"z": Normal(loc="d")},
        },
        "'z' in the guide refers to 'd', which is a term of the model; a guide sees: x",
    ),
    (
        {"model": {"z": Z, "x": X}, "guide": {"z": Normal(loc=Linear("z"))}},
        "'z' in the guide refers to 'z', which is itself; a guide sees: x",
    ),
    (
        {"model": {"a": Z, "z": Normal(2, loc="a"), "x": X}, "guide": {"a": Normal(loc=Linear("x"))}},
        "the guide lacks 'z', which is a continuous latent; it must name: a, z",
    ),
    # columns, and latents that they decide
    (
        {"model": MIX, "columns": {"xx": "a"}},
        "columns name 'xx', which is no node; did you mean 'x'? nodes: z, x",
    ),
    ({"model": MIX, "columns": {"x": ["a", "a"]}}, "the columns of 'x' name 'a' twice"),
    ({"model": MIX, "columns": {"x": [1]}}, "the columns of 'x' must be a column's name or a list of them"),
    (
        {"model": {"x": Normal(2)}, "columns": {"x": ["a"]}},
        "'x' has 1 columns, but is declared Normal(2)",
    ),
    (
        {"model": {"z": Categorical(), "x": Normal(loc=By("z"))}, "columns": {"x": "a"}},
        "'z' is latent, so its number of categories must be written, as Categorical(3)",
    ),
    (
        {"model": {"z": Normal(), "x": Normal(loc=Linear("z"))}, "columns": {"x": "a"}},
        "'z' is latent, so its size must be written, as Normal(2)",
    ),
    (
        {"model": {"z": Poisson(1), "x": Normal(loc=Linear("z"))}, "columns": {"x": "a"}},
        "'z' is a latent Poisson, whose values cannot be summed over",
    ),
    (
        {"model": {"z": Bernoulli(14), "x": Normal(loc=Linear("z"))}, "columns": {"x": "a"}},
        "'z' is latent with a joint table of 2^14 entries; at most 10000 can be summed over",
    ),
]


@pytest.mark.parametrize(("sections", "message"), WRONG_SPECS, ids=[m[:60] for _, m in WRONG_SPECS])
def test_a_declaration_that_cannot_hold_together_is_refused_naming_both_sides(sections, message):
    with pytest.raises(SpecError) as caught:
        Spec(**sections)
    assert str(caught.value) == message


def test_an_unknown_section_is_told_like_an_unknown_option():
    with pytest.raises(SpecError, match="Spec has no option 'modle'; did you mean 'model'"):
        Spec(modle={})
