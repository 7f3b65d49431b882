"""Parameters that are equal, ordered or written in part, and several latents: against pooling and enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logsumexp
from scipy.stats import bernoulli, norm, poisson

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Bernoulli, Categorical, Node, Normal, Poisson
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By, Free, Sum, Term
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.ordering import latent_statistics
from ppl_gen.results.fit import Fit

R = np.random.default_rng(5)
N = 300
CLASS = R.integers(0, 2, N)
EXACT = EM(restarts=5, tol=1e-12)
Z = {"z": Categorical(2)}


def coins(probs: tuple[float, float], n: int = 1) -> np.ndarray:
    return (R.random((N, n)) < np.array(probs)[CLASS][:, None]).astype(float)


class TestEquality:
    """One name for several items: what latent class analysis calls equal items."""

    A, B, C = coins((0.9, 0.2)), coins((0.9, 0.2)), coins((0.3, 0.7), 2)

    def test_equal_items_are_those_of_pooled_sums(self) -> None:
        """Items with one probability count how many came out 1, up to a constant: a Binomial of two trials."""
        model = Z | {"m": By("z"), "a": Bernoulli(1, probs="m"), "b": Bernoulli(1, probs="m")}
        model |= {"c": Bernoulli(2, probs=By("z"))}
        found = fit(Spec(model=model), {"a": self.A, "b": self.B, "c": self.C}, EXACT)
        p = found.parameters
        np.testing.assert_array_equal(p["a"]["probs"], p["b"]["probs"])
        assert found.n_parameters == 1 + 2 + 4
        r = found.predict_proba({"a": self.A, "b": self.B, "c": self.C})
        pooled = (r.T @ (self.A + self.B)) / (2 * r.sum(0)[:, None])
        np.testing.assert_allclose(p["a"]["probs"], pooled, rtol=1e-5)
        np.testing.assert_allclose(p["c"]["probs"], (r.T @ self.C) / r.sum(0)[:, None], rtol=1e-5)
        assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
        assert found.certificate.ok, found.certificate
        narrow = Z | {"ab": Bernoulli(2, probs=By("z", dim=1)), "c": Bernoulli(2, probs=By("z"))}
        same = fit(Spec(model=narrow), {"ab": np.hstack([self.A, self.B]), "c": self.C}, EXACT)
        assert found.log_likelihood == pytest.approx(same.log_likelihood, rel=1e-9)

    def test_one_location_for_two_columns_of_unequal_spread_is_the_weighted_mean(self) -> None:
        x, y = R.normal(2, 0.5, (N, 1)), R.normal(2, 3.0, (N, 1))
        model = {"m": Free(), "x": Normal(1, loc="m"), "y": Normal(1, loc="m")}
        p = fit(Spec(model=model), {"x": x, "y": y}, EXACT).parameters
        weight = [p["x"]["scale"].item() ** -2, p["y"]["scale"].item() ** -2]
        mean = np.average([x.mean(), y.mean()], weights=weight)
        assert p["x"]["loc"].item() == p["y"]["loc"].item() == pytest.approx(mean, rel=1e-8)
        np.testing.assert_allclose(p["y"]["scale"], np.sqrt(((y - mean) ** 2).mean()), rtol=1e-8)


def ordered(theta: np.ndarray) -> np.ndarray:
    return np.cumsum([theta[0], *np.exp(theta[1:])])


def mixture(probs: np.ndarray, log_p: np.ndarray) -> float:
    return -float(logsumexp(np.log(probs) + log_p, axis=1).sum())


def softmax(theta: np.ndarray) -> np.ndarray:
    return np.exp(np.append(0, theta) - logsumexp(np.append(0, theta)))


THREE = R.integers(0, 3, N)
LEVELS = R.normal(np.array([-2.0, 0.5, 3.0])[THREE], 1.0)[:, None]
PAIRS = R.normal(np.array([[0.0, 1.0], [4.0, -3.0]])[CLASS], 1.0)
RATES = R.poisson(np.array([2.0, 8.0])[CLASS])[:, None].astype(float)

# By name: the model, the data, −log-likelihood of an unconstrained vector, and where a general optimiser begins.
CONSTRAINED: dict[
    str, tuple[Mapping[str, Node], Mapping[str, np.ndarray], Callable[[np.ndarray], float], list[float]]
]
CONSTRAINED = {
    "ordered": (
        {"z": Categorical(3), "x": Normal(1, loc=By("z", ordered=True), scale=Free())},
        {"x": LEVELS},
        lambda t: mixture(softmax(t[:2]), norm.logpdf(LEVELS, ordered(t[2:5]), np.exp(t[5]))),
        [0, 0, -2, 0.5, 0.5, 0],
    ),
    "written in part": (
        Z | {"x": Normal(2, loc=By("z"), scale=[1, Free()])},
        {"x": PAIRS},
        lambda t: mixture(
            softmax(t[:1]),
            norm.logpdf(PAIRS[:, None], t[1:5].reshape(2, 2), [1, np.exp(t[5])]).sum(-1),
        ),
        [0, 0, 1, 4, -3, 0],
    ),
    "tied": (
        Z | {"x": Normal(2, loc=By("z"), scale=Free(dim=1))},
        {"x": PAIRS},
        lambda t: mixture(softmax(t[:1]), norm.logpdf(PAIRS[:, None], t[1:5].reshape(2, 2), np.exp(t[5])).sum(-1)),
        [0, 0, 1, 4, -3, 0],
    ),
    "written shares": (
        {"z": Categorical(2, probs=[0.25, 0.75]), "n": Poisson(1, rate=By("z"))},
        {"n": RATES},
        lambda t: mixture(np.array([0.25, 0.75]), poisson.logpmf(RATES, np.exp(t))),
        [0.5, 2.0],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTRAINED)
def test_constraints_hold_at_the_maximum_that_a_general_optimiser_finds(name: str) -> None:
    model, data, negative, start = CONSTRAINED[name]
    found = fit(Spec(model=model), data, EM(tol=1e-12, restarts=4))
    starts = start + np.random.default_rng(1).normal(size=(4, len(start)))
    starts = np.vstack([starts, starts[:2, ::-1]])  # also with classes the other way round
    with np.errstate(all="ignore"):
        peer = min((minimize(negative, each, method="BFGS") for each in starts), key=lambda one: one.fun)
    assert found.log_likelihood == pytest.approx(-peer.fun, abs=1e-6)
    assert found.n_parameters == len(start)
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
    assert found.certificate.ok, found.certificate
    if name == "ordered":
        assert (np.diff(found.parameters["x"]["loc"].ravel()) > 0).all()
    if name == "written in part":
        assert found.parameters["x"]["scale"].ravel()[0] == 1


# Several latents: every joint state written out, one by one.
A = R.integers(0, 2, N)
B = np.where(R.random(N) < 0.8, A, 1 - A)
C = R.integers(0, 3, N)
DATA = {
    "x": R.normal(np.array([0.0, 4.0])[A], 1.0)[:, None],
    "y": R.normal(np.array([[-3.0, 0.0, 3.0], [0.0, 3.0, 6.0]])[A, C], 0.8)[:, None],
    "n": R.poisson(np.array([2.0, 9.0])[B])[:, None].astype(float),
    "b": (R.random((N, 2)) < expit(np.array([-2.0, 0.0, 2.0])[C])[:, None]).astype(float),
}
Density = Callable[[dict, dict, int], np.ndarray]


def table(parameters: dict, node: str, key: str, *index: int) -> np.ndarray:
    return parameters[node][key][index]


def normal(node: str, *parents: str) -> Density:
    def log_p(p: dict, at: dict, d: int) -> np.ndarray:
        index = tuple(at[name] for name in parents)
        scale = p[node]["scale"]
        return norm.logpdf(
            DATA[node][d], p[node]["loc"][index], scale[index] if scale.ndim > 1 else scale
        ).sum()

    return log_p


LATENTS: dict[str, tuple[Mapping[str, Node | Term], tuple[str, ...], Callable[[dict, dict, int], float]]] = {
    "independent": (
        {
            "a": Categorical(2),
            "b2": Categorical(2),
            "x": Normal(1, loc=By("a"), scale=By("a")),
            "n": Poisson(1, rate=By("b2")),
        },
        ("a", "b2"),
        lambda p, at, d: (
            np.log(p["a"]["probs"][at["a"]] * p["b2"]["probs"][at["b2"]])
            + norm.logpdf(DATA["x"][d], p["x"]["loc"][at["a"]], p["x"]["scale"][at["a"]]).sum()
            + poisson.logpmf(DATA["n"][d], p["n"]["rate"][at["b2"]]).sum()
        ),
    ),
    "product": (
        {
            "a": Categorical(2),
            "c": Categorical(3),
            "x": Normal(1, loc=By("a"), scale=Free()),
            "y": Normal(1, loc=By(["a", "c"]), scale=Free()),
            "b": Bernoulli(2, probs=By("c")),
        },
        ("a", "c"),
        lambda p, at, d: (
            np.log(p["a"]["probs"][at["a"]] * p["c"]["probs"][at["c"]])
            + norm.logpdf(DATA["x"][d], p["x"]["loc"][at["a"]], p["x"]["scale"]).sum()
            + norm.logpdf(DATA["y"][d], p["y"]["loc"][at["a"], at["c"]], p["y"]["scale"]).sum()
            + bernoulli.logpmf(DATA["b"][d], p["b"]["probs"][at["c"]]).sum()
        ),
    ),
    "hierarchical": (
        {
            "a": Categorical(2),
            "b2": Categorical(2, probs=By("a")),
            "x": Normal(1, loc=By("a"), scale=Free()),
            "n": Poisson(1, rate=By("b2")),
        },
        ("a", "b2"),
        lambda p, at, d: (
            np.log(p["a"]["probs"][at["a"]] * p["b2"]["probs"][at["a"], at["b2"]])
            + norm.logpdf(DATA["x"][d], p["x"]["loc"][at["a"]], p["x"]["scale"]).sum()
            + poisson.logpmf(DATA["n"][d], p["n"]["rate"][at["b2"]]).sum()
        ),
    ),
    "added up": (
        {
            "a": Categorical(2),
            "c": Categorical(3),
            "x": Normal(1, loc=By("a"), scale=Free()),
            "y": Normal(1, loc=Sum(By("a"), By("c")), scale=Free()),
        },
        ("a", "c"),
        lambda p, at, d: (
            np.log(p["a"]["probs"][at["a"]] * p["c"]["probs"][at["c"]])
            + norm.logpdf(DATA["x"][d], p["x"]["loc"][at["a"]], p["x"]["scale"]).sum()
            + norm.logpdf(DATA["y"][d], sums(p)[at["a"], at["c"]], p["y"]["scale"]).sum()
        ),
    ),
}


def sums(p: dict) -> np.ndarray:
    """What By(a) + By(c) is at each pair: the second term counted from its first category."""
    first, second = (part.ravel() for part in p["y"]["loc"])
    return (first[:, None] + (second - second[0])[None])[..., None]


def enumerated(name: str) -> tuple[Fit, dict[str, np.ndarray], np.ndarray, list[dict[str, int]]]:
    model, latents, log_joint = LATENTS[name]
    data = {key: value for key, value in DATA.items() if key in model}
    found = fit(Spec(model=model), data, EM(restarts=8, tol=1e-11))
    levels = [range(model[key].k) for key in latents]  # type: ignore[union-attr]
    states = [dict(zip(latents, at, strict=True)) for at in itertools.product(*levels)]
    joint = np.array([[log_joint(found.parameters, at, d) for at in states] for d in range(N)])
    return found, data, joint, states


@pytest.mark.parametrize("name", LATENTS)
def test_several_latents_are_the_sum_over_every_joint_state(name: str) -> None:
    found, data, joint, states = enumerated(name)
    assert found.log_likelihood == pytest.approx(logsumexp(joint, axis=1).sum(), rel=1e-10)
    assert np.diff(found.history).min() >= -1e-9 * abs(found.log_likelihood)
    assert found.certificate.ok, found.certificate
    posterior = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))  # (N, states)
    program, latents = found.program, LATENTS[name][1]
    counts = latent_statistics(program, dict(program.state_dict()), read_table(data, found.spec))
    for latent in latents:
        parents = [parent for parent in found.spec.node_parents(latent) if parent in latents]
        own = [*parents, latent]
        expected = np.zeros([program.generative.draws[key].sizes.k for key in own])
        for s, at in enumerate(states):
            expected[tuple(at[key] for key in own)] += posterior[:, s].sum()
        np.testing.assert_allclose(counts[latent].numpy(), expected, rtol=1e-8)
        # At the maximum the probabilities are these counts' shares: each from the marginal over its own parents.
        shares = expected / expected.sum(-1, keepdims=True)
        np.testing.assert_allclose(found.parameters[latent]["probs"], shares, atol=1e-4)
    if name == "product":  # the location of a pair is the mean of the rows that are expected in it
        for s, at in enumerate(states):
            mean = posterior[:, s] @ data["y"][:, 0] / posterior[:, s].sum()
            assert found.parameters["y"]["loc"][at["a"], at["c"], 0] == pytest.approx(mean, abs=1e-3)
