"""Terms become the parameters that the rules of the language promise; every number is redone in NumPy."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear, Sum
from ppl_gen.errors import SpecError
from ppl_gen.program.program import Program, compile_spec

N = 6
RANDOM = np.random.default_rng(8)
DATA = {
    "a": np.array([0, 1, 2, 0, 1, 2]),
    "b": np.array([0, 1, 0, 1, 1, 0]),
    "u": RANDOM.normal(3, 2, (N, 2)),
    "v": RANDOM.normal(size=(N, 1)),
    "n": np.array([[0.0], [3.0], [7.0], [1.0], [2.0], [0.0]]),
    "x": RANDOM.normal(size=(N, 4)),
    "y": RANDOM.normal(size=(N, 1)),
    "c": np.array([0, 1, 2, 1, 0, 2]),
    "w": RANDOM.normal(size=(N, 2)),
    "flag": RANDOM.integers(0, 2, (N, 2)).astype(float),
}


def compiled(**model: object) -> Program:
    """The model over as much of DATA as it names, its parameters set at random."""
    spec = Spec(model=model)
    program = compile_spec(
        spec, {name: DATA[name] for name in spec.nodes if name in DATA}, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return program


def working(program: Program, node: str) -> dict[str, np.ndarray]:
    values = program.tensors({name: DATA[name] for name in program.spec.nodes if name in DATA})
    return {key: value.detach().numpy() for key, value in program.generative.working(node, values).items()}


def number(program: Program, path: str) -> np.ndarray:
    return program.state_dict()[f"generative.layers.{path}"].numpy()


A, B = Categorical(3), Categorical(2)


def test_a_table_has_an_axis_for_each_parent_in_the_order_written():
    program = compiled(a=A, b=B, x=Normal(4, loc=By(["b", "a"]), scale=By("a", dim=1)))
    table = number(program, "x:loc.table")
    assert table.shape == (2, 3, 4)
    assert number(program, "x:scale.table").shape == (3, 1)
    np.testing.assert_array_equal(working(program, "x")["loc"], table[DATA["b"], DATA["a"]])
    natural = program.natural()["x"]
    np.testing.assert_allclose(natural["loc"], table)
    np.testing.assert_allclose(natural["scale"], np.exp(number(program, "x:scale.table")))


def test_a_vector_of_categories_has_an_axis_for_each_of_its_cells():
    program = compiled(flag=Bernoulli(2), y=Normal(1, loc=By("flag")))
    table = number(program, "y:loc.table")
    assert table.shape == (2, 2, 1)
    first, second = DATA["flag"].astype(int).T
    np.testing.assert_array_equal(working(program, "y")["loc"], table[first, second])


def test_tables_hold_the_parameters_own_axes_last():
    program = compiled(
        a=A, x=MultivariateNormal(4, loc=By("a"), cov=By("a")), c=Categorical(3, probs=By("a"))
    )
    natural = program.natural()
    assert natural["x"]["cov"].shape == (3, 4, 4)
    np.testing.assert_allclose(natural["x"]["cov"], np.swapaxes(natural["x"]["cov"], 1, 2))
    assert np.linalg.eigvalsh(natural["x"]["cov"]).min() > 0
    assert natural["c"]["probs"].shape == (3, 3)
    np.testing.assert_allclose(natural["c"]["probs"], softmax(number(program, "c:probs.table"), -1))


def test_written_numbers_broadcast():
    program = compiled(x=MultivariateNormal(4, loc=0, cov=0.5), c=Categorical(3, logits=0))
    np.testing.assert_allclose(program.natural()["x"]["cov"], 0.5 * np.eye(4), atol=1e-15)
    np.testing.assert_allclose(softmax(program.natural()["c"]["logits"]), np.full(3, 1 / 3))
    program = compiled(x=Normal(4, loc=[1, 2, 3, 4], scale=2))
    np.testing.assert_allclose(program.natural()["x"]["loc"], [1, 2, 3, 4])
    np.testing.assert_allclose(program.natural()["x"]["scale"], [2, 2, 2, 2])
    assert not list(program.parameters())


def test_a_sum_has_one_intercept_which_the_first_term_keeps():
    inputs = {"a": A, "u": Input(2), "v": Input(1)}
    program = compiled(**inputs, x=Normal(4, loc=By("a") + Linear("u"), scale=1))
    table, weight = number(program, "x:loc.terms.0.table"), number(program, "x:loc.terms.1.weight")
    assert "generative.layers.x:loc.terms.1.bias" not in dict(program.named_parameters())
    np.testing.assert_allclose(working(program, "x")["loc"], table[DATA["a"]] + DATA["u"] @ weight.T)

    program = compiled(**inputs, x=Normal(4, loc=Linear("u") + By("a"), scale=1))
    weight, bias = number(program, "x:loc.terms.0.weight"), number(program, "x:loc.terms.0.bias")
    table = number(program, "x:loc.terms.1.table")
    expected = DATA["u"] @ weight.T + bias + (table - table[0])[DATA["a"]]
    np.testing.assert_allclose(working(program, "x")["loc"], expected)

    program = compiled(**inputs, y=Normal(1, loc=MLP("u", [3]) + MLP("v", [2]), scale=1))
    assert len([path for path, _ in program.named_parameters() if ":loc.terms.0" in path]) == 4
    assert len([path for path, _ in program.named_parameters() if ":loc.terms.1" in path]) == 3


def test_what_is_added_counts_on_the_linear_predictors_scale():
    program = compiled(u=Input(2), n=Poisson(1, rate=Linear("u") + 1 + (-0.25)))
    weight, bias = number(program, "n:rate.terms.0.weight"), number(program, "n:rate.terms.0.bias")
    expected = np.exp(DATA["u"] @ weight.T + bias + 0.75)
    np.testing.assert_allclose(working(program, "n")["rate"], expected)
    program = compiled(u=Input(2), v=Input(1), n=Poisson(1, rate=Linear("u") + "v"))
    weight, bias = number(program, "n:rate.terms.0.weight"), number(program, "n:rate.terms.0.bias")
    np.testing.assert_allclose(working(program, "n")["rate"], np.exp(DATA["u"] @ weight.T + bias + DATA["v"]))
    program = compiled(v=Input(1), y=Normal(1), x=Normal(4, loc=Sum("v", "y"), scale=1))
    np.testing.assert_allclose(
        np.broadcast_to(working(program, "x")["loc"], (N, 4)), np.tile(DATA["v"] + DATA["y"], 4)
    )


def test_weights_and_biases_are_one_for_each_category_of_by():
    program = compiled(a=A, b=B, u=Input(2), x=Normal(4, loc=Linear("u", by=["a", "b"]), scale=1))
    weight, bias = number(program, "x:loc.weight"), number(program, "x:loc.bias")
    assert (weight.shape, bias.shape) == ((3, 2, 4, 2), (3, 2, 4))
    own = DATA["a"], DATA["b"]
    expected = np.einsum("noi,ni->no", weight[own], DATA["u"]) + bias[own]
    np.testing.assert_allclose(working(program, "x")["loc"], expected)
    natural = program.natural()["x"]["loc"]
    np.testing.assert_array_equal(natural["weight"], weight)
    np.testing.assert_array_equal(natural["bias"], bias)

    program = compiled(a=A, u=Input(2), x=Normal(4, loc=Linear("u", by="a", bias=0), scale=1))
    expected = np.einsum("noi,ni->no", number(program, "x:loc.weight")[DATA["a"]], DATA["u"])
    np.testing.assert_allclose(working(program, "x")["loc"], expected)
    program = compiled(u=Input(2), x=Normal(4, loc=Linear("u", bias=[1, 2, 3, 4]), scale=1))
    expected = DATA["u"] @ number(program, "x:loc.weight").T + [1, 2, 3, 4]
    np.testing.assert_allclose(working(program, "x")["loc"], expected)


def network(program: Program, path: str, entering: np.ndarray, own: tuple, activation) -> np.ndarray:
    for i in (0, 1):
        W, b = number(program, f"{path}.weights.{i}")[own], number(program, f"{path}.biases.{i}")[own]
        entering = np.einsum("noi,ni->no", np.broadcast_to(W, (N, *W.shape[-2:])), entering) + b
        entering = activation(entering) if i == 0 else entering
    return entering


def test_a_network_of_by_has_weights_for_each_category_and_sees_standardised_inputs():
    program = compiled(a=A, u=Input(2), x=Normal(4, loc=MLP("u", [5], activation="tanh", by="a"), scale=1))
    seen = (DATA["u"] - DATA["u"].mean(0)) / DATA["u"].std(0)
    expected = network(program, "x:loc", seen, (DATA["a"],), np.tanh)
    np.testing.assert_allclose(working(program, "x")["loc"], expected)


def test_an_enumerated_category_picks_the_same_weights_as_an_observed_one():
    inputs = {"u": Input(2), "x": Normal(4, loc=Linear("u", by="z"), scale=By("z"))}
    program = compiled(z=Categorical(3), **inputs)
    values = program.tensors({"u": DATA["u"]}) | {"z": torch.arange(3).reshape(3, 1)}
    enumerated = program.generative.working("x", values)
    for k in range(3):
        alone = program.generative.working(
            "x", program.tensors({"u": DATA["u"]}) | {"z": torch.full((N,), k)}
        )
        assert torch.equal(enumerated["loc"][k], alone["loc"])
        assert torch.equal(enumerated["scale"][k].expand(N, 4), alone["scale"])


def test_what_enters_linear_is_raw_and_a_category_drops_its_first_level():
    inputs = {"a": A, "u": Input(2), "n": Poisson(1), "flag": Bernoulli(2)}
    program = compiled(**inputs, y=Normal(1, loc=Linear(["u", "a", "n", "flag"]), scale=1))
    one_hot = np.eye(3)[DATA["a"]][:, 1:]
    entering = np.concatenate([DATA["u"], one_hot, DATA["n"], DATA["flag"]], 1)
    weight, bias = number(program, "y:loc.weight"), number(program, "y:loc.bias")
    np.testing.assert_allclose(working(program, "y")["loc"], entering @ weight.T + bias)


def test_what_enters_a_network_is_standardised_logged_or_one_hot():
    inputs = {"a": A, "u": Input(2), "n": Poisson(1), "flag": Bernoulli(2)}
    program = compiled(**inputs, y=Normal(1, loc=MLP(["u", "a", "n", "flag"], [3]), scale=1))
    seen = (DATA["u"] - DATA["u"].mean(0)) / DATA["u"].std(0)
    entering = np.concatenate([seen, np.eye(3)[DATA["a"]], np.log1p(DATA["n"]), DATA["flag"]], 1)
    expected = network(program, "y:loc", entering, (), lambda h: np.maximum(h, 0))
    np.testing.assert_allclose(working(program, "y")["loc"], expected)


@pytest.mark.parametrize(
    ("node", "parameter", "transform"),
    [
        (Normal(1, loc=Linear("u"), scale=1), "loc", lambda u: u),
        (Normal(1, loc=0, scale=Linear("u")), "scale", np.exp),
        (Normal(1, loc=0, scale=Linear("u", transform="softplus")), "scale", lambda u: np.log1p(np.exp(u))),
        (Poisson(1, rate=Linear("u")), "rate", np.exp),
        (Poisson(1, rate=Linear("u", transform="softplus")), "rate", lambda u: np.log1p(np.exp(u))),
    ],
    ids=str,
)
def test_a_functions_output_goes_through_the_transform_of_its_constraint(node, parameter, transform):
    name = "n" if isinstance(node, Poisson) else "y"
    program = compiled(u=Input(2), **{name: node})
    weight, bias = (number(program, f"{name}:{parameter}.{part}") for part in ("weight", "bias"))
    np.testing.assert_allclose(working(program, name)[parameter], transform(DATA["u"] @ weight.T + bias))


def test_probabilities_of_a_function_are_sigmoids_and_softmaxes():
    program = compiled(u=Input(2), flag=Bernoulli(2, probs=Linear("u")))
    dist = program.generative.distribution("flag", program.tensors({"u": DATA["u"]}))
    u = DATA["u"] @ number(program, "flag:probs.weight").T + number(program, "flag:probs.bias")
    np.testing.assert_allclose(dist.mean.detach(), expit(u))
    for parameter in ("probs", "logits"):
        program = compiled(u=Input(2), c=Categorical(3, **{parameter: MLP("u", [4])}))
        assert number(program, f"c:{parameter}.weights.1").shape == (3, 4)
        dist = program.generative.distribution("c", program.tensors({"u": DATA["u"]}))
        np.testing.assert_allclose(dist.logits.exp().sum(-1).detach(), np.ones(N))


def test_a_covariance_of_a_function_is_positive_definite():
    program = compiled(u=Input(2), x=MultivariateNormal(4, loc=0, cov=Linear("u")))
    L = working(program, "x")["cov"]
    np.testing.assert_array_equal(L, np.tril(L))
    packed = DATA["u"] @ number(program, "x:cov.weight").T + number(program, "x:cov.bias")
    rows, columns = np.tril_indices(4)
    least = 1e-4 * DATA["x"].std(0)[rows]  # what the diagonal is kept above
    expected = np.where(rows == columns, np.maximum(np.exp(packed), least), packed)
    np.testing.assert_allclose(L[:, rows, columns], expected)


@pytest.mark.parametrize("term", [Linear("u"), Linear("u") + Linear("v"), Linear("u") + By("a")], ids=str)
def test_the_first_category_is_the_reference_of_a_linear_predictor(term):
    program = compiled(a=A, u=Input(2), v=Input(1), c=Categorical(3, logits=term))
    path = "c:logits" if isinstance(term, Linear) else "c:logits.terms.0"
    weight, bias = number(program, f"{path}.weight"), number(program, f"{path}.bias")
    assert (weight.shape, bias.shape) == ((2, 2), (2,))
    if isinstance(term, Linear):
        expected = np.c_[np.zeros(N), DATA["u"] @ weight.T + bias]
        np.testing.assert_allclose(working(program, "c")["logits"], expected)


def test_a_free_number_in_a_list_is_all_of_it_that_is_learned():
    program = compiled(x=Normal(4, loc=[0, Free(), 2, Free()], scale=[1, 1, Free(), 3]))
    free = dict(program.named_parameters())["generative.layers.x:loc.table"].detach().numpy()
    np.testing.assert_allclose(program.natural()["x"]["loc"], [0, free[1], 2, free[3]])
    np.testing.assert_allclose(program.natural()["x"]["scale"][[0, 1, 3]], [1, 1, 3])
    assert program.n_parameters == 3


def test_one_name_used_twice_is_one_set_of_numbers_and_two_equal_texts_are_two():
    program = compiled(a=A, s=By("a"), y=Normal(1, loc="s", scale=1), v=Normal(1, loc="s", scale=1))
    assert [path for path, _ in program.named_parameters() if ":loc" in path] == [
        "generative.layers.s:loc.table"
    ]
    np.testing.assert_array_equal(working(program, "y")["loc"], working(program, "v")["loc"])
    program = compiled(a=A, y=Normal(1, loc=By("a"), scale=1), v=Normal(1, loc=By("a"), scale=1))
    assert not np.array_equal(working(program, "y")["loc"], working(program, "v")["loc"])


def test_a_named_network_is_its_last_hidden_layer_where_it_is_a_parent():
    program = compiled(u=Input(2), h=MLP("u", [5, 3]), x=Normal(4, loc=Linear("h"), scale=Linear("h")))
    hidden = (DATA["u"] - DATA["u"].mean(0)) / DATA["u"].std(0)
    for i in (0, 1):
        W, b = number(program, f"h:.weights.{i}"), number(program, f"h:.biases.{i}")
        hidden = np.maximum(hidden @ W.T + b, 0)
    assert hidden.shape == (N, 3)
    found = working(program, "x")
    expected = hidden @ number(program, "x:loc.weight").T + number(program, "x:loc.bias")
    np.testing.assert_allclose(found["loc"], expected)
    assert not np.array_equal(found["loc"], np.log(found["scale"]))


def test_a_named_table_with_a_width_is_an_embedding():
    program = compiled(
        a=A, e=By("a", dim=2), h=Linear("e", dim=3), x=Normal(4, loc=Linear(["h", "e"]), scale=1)
    )
    e = number(program, "e:.table")[DATA["a"]]
    h = e @ number(program, "h:.weight").T + number(program, "h:.bias")
    expected = np.c_[h, e] @ number(program, "x:loc.weight").T + number(program, "x:loc.bias")
    np.testing.assert_allclose(working(program, "x")["loc"], expected)


def test_ordered_values_increase():
    program = compiled(a=A, y=Normal(1, loc=By("a", ordered=True), scale=1))
    loc = program.natural()["y"]["loc"][:, 0]
    table = number(program, "y:loc.table")[:, 0]
    np.testing.assert_allclose(loc, np.cumsum([table[0], *np.exp(table[1:])]))
    assert (np.diff(loc) > 0).all()


WRONG = {
    "too few numbers": (lambda: {"x": Normal(4, loc=[1, 2, 3], scale=1)}, "must fit the node's dim=4"),
    "a scale of 0": (lambda: {"x": Normal(4, loc=0, scale=0)}, "scale|positive"),
    "not symmetric": (
        lambda: {"w": MultivariateNormal(2, loc=0, cov=[[1, 0.5], [0, 1]])},
        "symmetric",
    ),
    "not positive definite": (
        lambda: {"w": MultivariateNormal(2, loc=0, cov=[[1, 2], [2, 1]])},
        "positive definite",
    ),
    "Free in a matrix": (
        lambda: {"w": MultivariateNormal(2, loc=0, cov=[[1, 0], [0, Free()]])},
        "Free() inside a matrix is not supported yet",
    ),
    "Free among probabilities": (
        lambda: {"c": Categorical(3, probs=[0.2, Free(), Free()])},
        "Free() among probabilities is not supported yet",
    ),
    "a width that does not fit": (lambda: {"a": A, "x": Normal(4, loc=By("a", dim=3))}, "dim=3"),
    "one value for a matrix": (lambda: {"a": A, "x": MultivariateNormal(4, cov=By("a", dim=1))}, "dim=1"),
    "ordered in four dimensions": (
        lambda: {"a": A, "x": Normal(4, loc=By("a", ordered=True))},
        "ordered=True needs one number a category",
    ),
    "a transform where there is no constraint": (
        lambda: {
            "u": Input(2),
            "h": Linear("u", dim=2, transform="exp"),
            "w": Normal(2, loc=Linear("h"), scale=1),
        },
        "'h' is used as a value, which has no constraint to transform into",
    ),
    "a transform into another space": (
        lambda: {"u": Input(2), "flag": Bernoulli(2, probs=Linear("u", transform="exp"))},
        "probs cannot have transform='exp'; those whose values fit: sigmoid",
    ),
    "a category as a number": (lambda: {"a": A, "y": Normal(1, loc="a", scale=1)}, "'a'"),
    "an offset of the wrong width": (
        lambda: {"u": Input(2), "x": Normal(4, loc="u", scale=1)},
        "'u'|'x' is declared",
    ),
    "a value without a width": (
        lambda: {"u": Input(2), "h": Linear("u"), "x": Normal(4, loc=Linear("h"), scale=1)},
        "'x' uses 'h' as a value, so its width must be written",
    ),
    "a share between two shapes": (
        lambda: {"s": Free(), "x": Normal(4, loc="s", scale=1), "y": Normal(1, loc="s", scale=1)},
        "share one named term but differ in shape",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_term_that_cannot_give_its_parameter_is_refused_by_name(case):
    declare, expected = WRONG[case]
    with pytest.raises(SpecError) as raised:
        compiled(**declare())
    assert any(part in str(raised.value) for part in expected.split("|")), str(raised.value)
    assert not re.search(r"Tensor|torch", str(raised.value))
