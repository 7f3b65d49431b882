"""The log-density of a model's priors by SciPy, from the declaration and the learned numbers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy
from scipy.special import gammaln, xlogy

from ppl_gen.certify.evaluate import LEAST_PROBABILITY, Evaluation
from ppl_gen.certify.predictors import Array
from ppl_gen.declare.priors import Dirichlet, InverseGamma, InverseWishart, Prior
from ppl_gen.declare.terms import MLP, By, Free, Linear, Name, Sum, Term

DENSITIES: dict[str, Callable[..., Array]] = {
    "Normal": lambda x, p: scipy.stats.norm(p.loc, p.scale).logpdf(x),
    "StudentT": lambda x, p: scipy.stats.t(p.df, p.loc, p.scale).logpdf(x),
    "LogNormal": lambda x, p: scipy.stats.lognorm(p.scale, scale=np.exp(p.loc)).logpdf(x),
    "Gamma": lambda x, p: scipy.stats.gamma(p.concentration, scale=1 / np.asarray(p.rate)).logpdf(x),
    "Exponential": lambda x, p: scipy.stats.expon(scale=1 / np.asarray(p.rate)).logpdf(x),
    "HalfNormal": lambda x, p: scipy.stats.halfnorm(scale=p.scale).logpdf(x),
    "HalfCauchy": lambda x, p: scipy.stats.halfcauchy(scale=p.scale).logpdf(x),
    "InverseGamma": lambda x, p: scipy.stats.invgamma(p.concentration, scale=p.rate).logpdf(x),
    "Beta": lambda x, p: scipy.stats.beta(p.concentration1, p.concentration0).logpdf(x),
}


def log_prior(model: Evaluation) -> float:
    """Σ log p of all learned numbers that have a prior, on their natural scale, in nats; 0 where none has.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.nodes import Normal
        >>> from ppl_gen.declare.spec import Spec
        >>> spec = Spec(model={"x": Normal(1, loc=Free(prior=Normal(loc=0, scale=2)), scale=1)})
        >>> numbers = {"generative.layers.x:loc.table": np.zeros(1)}
        >>> round(log_prior(Evaluation(spec, read_table({"x": [[0.0], [1.0]]}, spec).schema, numbers)), 4)
        -1.6121

    """
    return sum(_log_density(model, found) for found in _found(model))


@dataclass(frozen=True)
class Found:
    """A learned table or weight with a prior.

    `name` and `key` are the parameter it is of, or "" of a named value; `part` says that it stands in a sum, where
    it is on the linear predictor's scale, and `intercept` that no part before it has one.
    """

    path: str
    term: Any
    name: str = ""
    key: str = ""
    part: bool = False
    intercept: bool = True


def _found(model: Evaluation) -> Iterator[Found]:
    """Everything with a prior, what several parameters share once."""
    seen: set[str] = set()
    for name in model.names:
        for key, term in model.predictors.node(name).terms().items():
            owner = name
            if isinstance(term, Name) and isinstance(entry := model.entries.get(term.name), Term):
                owner, term = term.name, entry
            path = f"{model.path}.layers.{owner}:{key}"
            if path not in seen:
                seen.add(path)
                yield from _parts(Found(path, term, name, key))
    for name, entry in model.entries.items():
        path = f"{model.path}.layers.{name}:"
        if isinstance(entry, Term) and any(own.startswith(f"{path}.") for own in model.numbers):
            yield from _parts(Found(path, entry))


def _parts(whole: Found) -> Iterator[Found]:
    if not isinstance(whole.term, Sum):
        if getattr(whole.term, "prior", None) is not None:
            yield whole
        return
    intercept = True
    for position, term in enumerate(whole.term.terms):
        if getattr(term, "prior", None) is not None:
            path = f"{whole.path}.terms.{position}"
            yield replace(whole, path=path, term=term, part=True, intercept=intercept)
        carries = isinstance(term, Free | By | MLP)
        intercept = intercept and not (carries or (isinstance(term, Linear) and isinstance(term.bias, Free)))


def _log_density(model: Evaluation, found: Found) -> float:
    prior: Prior = found.term.prior
    values = _values(model, found)
    if isinstance(prior, Dirichlet):
        return _log_dirichlet(model, found, values, prior)
    if isinstance(prior, InverseWishart):
        D = values.shape[-1]
        scale = np.asarray(prior.scale) * np.eye(D) if np.ndim(prior.scale) == 0 else np.asarray(prior.scale)
        law = scipy.stats.invwishart(prior.df, scale)
        return float(sum(law.logpdf(matrix) for matrix in values.reshape(-1, D, D)))
    whole = not found.part and not isinstance(found.term, Linear)
    if isinstance(prior, InverseGamma) and found.key == "scale" and whole:
        values = values**2  # a prior of the variance
    return float(DENSITIES[type(prior).__name__](values, prior).sum())


def _values(model: Evaluation, found: Found) -> Array:
    """What the prior is about."""
    if isinstance(found.term, Linear):
        return model.numbers[f"{found.path}.weight"]
    table = model.numbers[f"{found.path}.table"]
    if isinstance(found.term, By) and found.term.ordered:
        table = np.cumsum(np.concatenate([table[:1], np.exp(table[1:])]), axis=0)
    if not found.intercept:  # the first category is the reference, 0 by definition
        depth = sum(len(model.predictors._levels(parent)) for parent in found.term.parents())
        table = (table - table[(0,) * depth]).reshape(-1, *table.shape[depth:])[1:]
    if found.part or not found.name:
        return table
    return model._transformed(model.predictors.node(found.name), found.key, found.term, table)


def _log_dirichlet(model: Evaluation, found: Found, probs: Array, prior: Dirichlet) -> float:
    """Over the categories that a column has: k where it is written, else those its data showed."""
    alpha, known = np.broadcast_to(prior.concentration, probs.shape), np.ones(probs.shape, dtype=bool)
    name, schema = found.name, model.schema
    if name in schema.levels and getattr(model.predictors.node(name), "k", None) is None:
        counts = np.array(schema.level_counts(name))
        apart = not model.predictors.is_scalar(name) and probs.shape[-2] == len(counts)
        known = known & (np.arange(probs.shape[-1]) < (counts[:, None] if apart else counts.max()))
    cells = xlogy(alpha - 1, np.maximum(probs, LEAST_PROBABILITY)) - gammaln(alpha)
    return float((gammaln((alpha * known).sum(-1)) + (cells * known).sum(-1)).sum())
