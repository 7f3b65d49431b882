"""What is written, printed and read again is the same declaration."""

from __future__ import annotations

import copy
import pickle

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ppl_gen.declare.files import read_spec, write_spec
from ppl_gen.declare.flow import KINDS, Flow
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.notation import format_entry, parse_entry
from ppl_gen.declare.priors import Dirichlet, HalfCauchy, InverseWishart
from ppl_gen.declare.scope import is_categorical
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Conv, Free, Linear, Name, Net, Sum, Value

NAMES = st.sampled_from(["z", "u", "log_hours", "true", "no", "y", "null", "x1", "μ", "変数"])
PARENTS = NAMES | st.lists(NAMES, min_size=1, max_size=3, unique=True)
SIZES = st.none() | st.integers(1, 2**31 - 1) | st.lists(st.integers(1, 99), min_size=1, max_size=3)
TRANSFORMS = st.sampled_from([None, "exp", "softplus"])
REALS = st.integers(-(10**20), 10**20) | st.floats(allow_nan=False, allow_infinity=False)
SOME, ABOVE_0 = st.floats(-9, 9) | st.integers(-9, 9), st.floats(1e-6, 1e6) | st.integers(1, 99)
PRIORS = st.none() | st.one_of(
    st.builds(Normal, loc=SOME | st.lists(SOME, min_size=1, max_size=3), scale=ABOVE_0),
    st.builds(HalfCauchy, scale=ABOVE_0),
    st.builds(Dirichlet, concentration=ABOVE_0 | st.lists(ABOVE_0, min_size=2, max_size=3)),
    st.builds(InverseWishart, df=ABOVE_0, scale=ABOVE_0 | st.just([[2.5, 1], [1, 1]])),
)
FREE = st.builds(Free, dim=SIZES, transform=TRANSFORMS, prior=PRIORS)
BY = st.builds(By, PARENTS, dim=SIZES, transform=TRANSFORMS, prior=PRIORS) | st.builds(
    By, NAMES, ordered=st.just(True)
)
LINEAR = st.builds(
    Linear,
    PARENTS,
    by=PARENTS | st.just([]),
    bias=st.just(Free()) | REALS,
    dim=SIZES,
    transform=TRANSFORMS,
    prior=PRIORS,
)
MLPS = st.builds(
    MLP,
    PARENTS,
    st.lists(st.integers(1, 999), min_size=1, max_size=3),
    activation=st.sampled_from(["relu", "tanh", "leaky_relu"]),
    by=PARENTS | st.just([]),
    dim=SIZES,
    transform=TRANSFORMS,
)
CONVS = st.builds(
    Conv,
    PARENTS,
    st.lists(st.integers(1, 999), min_size=1, max_size=3),
    kernel=st.integers(3, 9),
    stride=st.integers(1, 9),
    padding=st.integers(0, 2),
    activation=st.sampled_from(["relu", "tanh"]),
    transform=TRANSFORMS,
)
NETS = st.builds(
    Net,
    st.sampled_from(["torch.nn:Linear", "a.b:c.d", "変数:μ"]),
    PARENTS,
    dim=SIZES,
    transform=TRANSFORMS,
)
NUMBERS = st.integers(1, 3).flatmap(
    lambda n: st.lists(
        st.lists(REALS | st.just(Free()), min_size=n, max_size=n) | REALS | st.just(Free()),
        min_size=1,
        max_size=3,
    )
)


def value_or_none(nested):
    shapes = {len(item) if isinstance(item, list) else 0 for item in nested}
    return Value(nested) if len(shapes) == 1 else None


VALUES = st.builds(Value, REALS) | NUMBERS.map(value_or_none).filter(lambda v: v is not None)
SIMPLE = FREE | BY | LINEAR | MLPS | CONVS | NETS | VALUES | st.builds(Name, NAMES)


def added(terms):
    named = {getattr(t, "transform", None) for t in terms} - {None}
    assume(len(named) < 2)
    return Sum(*terms)


TERMS = SIMPLE | st.lists(SIMPLE, min_size=2, max_size=4).map(added)
UNSIZED = (
    st.builds(By, PARENTS, dim=st.sampled_from([None, 1]))
    | st.builds(Linear, PARENTS, by=PARENTS)
    | st.builds(MLP, PARENTS, st.just([8]))
    | st.builds(Name, NAMES)
    | st.just(Free())
)
POSITIVE = UNSIZED | st.floats(1e-6, 1e6)
NODES = st.one_of(
    st.builds(Normal, SIZES, loc=UNSIZED | st.floats(-9, 9), scale=POSITIVE),
    st.builds(MultivariateNormal, st.none() | st.integers(1, 9), loc=UNSIZED, cov=POSITIVE),
    st.builds(MultivariateNormal, st.none() | st.integers(1, 9), scale_tril=POSITIVE),
    st.builds(Bernoulli, SIZES, probs=UNSIZED | st.floats(0, 1)),
    st.builds(Bernoulli, SIZES, logits=UNSIZED | st.floats(-9, 9)),
    st.builds(Categorical, st.none() | st.integers(1, 99), dim=SIZES, logits=UNSIZED),
    st.builds(Categorical, st.none() | st.integers(1, 99), probs=UNSIZED),
    st.builds(Poisson, SIZES, rate=POSITIVE),
    st.builds(Input, SIZES, k=st.none() | st.integers(1, 9)),
    st.builds(
        Flow,
        st.none() | st.integers(2, 9),
        loc=UNSIZED,
        scale=POSITIVE,
        context=st.builds(Linear, PARENTS) | st.just(Free()),
        transforms=st.integers(1, 9),
        kind=st.sampled_from(KINDS),
        hidden=st.lists(st.integers(9, 99), min_size=1, max_size=2),
        activation=st.sampled_from(["relu", "tanh"]),
    ),
)


@settings(deadline=None)  # correctness, not speed, on a machine that others share
@given(TERMS | NODES)
def test_a_printed_node_or_term_is_read_back_as_itself(entry):
    assume(not isinstance(entry, Value))
    text = format_entry(entry)
    assert parse_entry(text, trust=True) == entry
    assert format_entry(parse_entry(text, trust=True)) == text
    assert repr(entry) == str(entry) == text


@settings(deadline=None)  # correctness, not speed, on a machine that others share
@given(TERMS | NODES)
def test_equal_declarations_hash_alike_and_survive_copies(entry):
    twin = pickle.loads(pickle.dumps(entry))
    assert twin == entry
    assert copy.deepcopy(entry) == entry
    assert hash(twin) == hash(entry)


@settings(deadline=None)  # correctness, not speed, on a machine that others share
@given(VALUES)
def test_numbers_are_printed_without_loss(value):
    assert parse_entry(f"Normal(loc={value})").loc == value


@st.composite
def specs(draw):
    """Declarations whose references all hold: each entry refers to names above it."""
    model = {}
    if draw(st.booleans()):
        model["u"] = draw(st.sampled_from([Input(2), Input(), Input(k=4)]))
    model["z"] = draw(st.sampled_from([Categorical(3), Normal(4, loc=0, scale=1), Bernoulli(2)]))
    for name in draw(st.lists(NAMES.filter(lambda n: n not in "uz"), unique=True, min_size=1, max_size=4)):
        above = list(model)
        categories = [n for n in above if is_categorical(model[n])]
        chosen = draw(st.lists(st.sampled_from(above), min_size=1, unique=True))
        term = draw(st.sampled_from([MLP(chosen, [8]), MLP(chosen, [8, 4], activation="tanh")]))
        if categories and draw(st.booleans()):
            term = By(categories[0], dim=1)
        entry = (
            term
            if draw(st.booleans())
            else draw(
                st.sampled_from(
                    [
                        Normal(loc=term),
                        Normal(1, loc=Sum(1, term)),
                        Poisson(rate=term),
                        Bernoulli(logits=term),
                    ]
                )
            )
        )
        model[name] = entry
    names = list(Spec(model=model).nodes)
    columns = draw(
        st.none()
        | st.dictionaries(
            st.just(names[-1]),
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
            min_size=1,
        )
    )
    try:
        return Spec(model=model, columns=columns)
    except ValueError:  # columns decide that a node without a size, or a count, would be latent
        return Spec(model=model)


@settings(deadline=None)  # correctness, not speed, on a machine that others share
@given(specs())
def test_a_declaration_written_as_yaml_is_read_back_as_itself(spec):
    text = write_spec(spec)
    assert read_spec(text) == spec
    assert write_spec(read_spec(text)) == text


@settings(deadline=None)  # correctness, not speed, on a machine that others share
@given(specs())
def test_a_declaration_written_to_a_file_is_read_back_as_itself(tmp_path_factory, spec):
    path = tmp_path_factory.mktemp("specs") / "model.yaml"
    write_spec(spec, path)
    assert read_spec(path) == spec == read_spec(str(path))


def test_a_guide_and_columns_are_part_of_what_is_written():
    spec = Spec(
        model={"z": Normal(8, loc=0, scale=1), "x": Normal(2, loc=MLP("z", [256]), scale=1)},
        guide={"h": MLP("x", [256]), "z": Normal(8, loc=Linear("h"), scale=Linear("h"))},
        columns={"x": ["a: b", "wait ing"]},
    )
    assert write_spec(spec) == (
        "model:\n"
        "  z: Normal(8, loc=0, scale=1)\n"
        "  x: Normal(2, loc=MLP(z, [256]), scale=1)\n"
        "guide:\n"
        "  h: MLP(x, [256])\n"
        "  z: Normal(8, loc=Linear(h), scale=Linear(h))\n"
        "columns:\n"
        '  x: ["a: b", "wait ing"]\n'
    )
    assert read_spec(write_spec(spec)) == spec
