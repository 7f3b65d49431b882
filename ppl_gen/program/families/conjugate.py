"""Closed maxima of a weighted likelihood times a conjugate prior: the prior counts as observations already made.

Each function is handed the sums over the parameter's own table, and answers with the maximum of the posterior
density of the natural parameter; without a prior (`site.priors`) that is the maximum of the likelihood. Where there
is neither weight nor prior, the current value stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.program.families.base import Site, at_least_tiny


def with_normal(site: Site, parameter: str, weighted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of a precision-weighted mean: a Normal adds loc/scale² and 1/scale²."""
    law = site.priors.get(parameter)
    if law is None:
        return weighted, weight
    precision = law.arguments["scale"] ** -2
    return weighted + law.arguments["loc"] * precision, weight + precision


def variance_mode(site: Site, parameter: str, squares: Tensor, count: Tensor, current: Tensor) -> Tensor:
    """The maximum over v of −½ count·log v − ½ squares/v + log p: the variance of a normal's scale.

    InverseGamma(a, b) is on v itself, (squares + 2b)/(count + 2a + 2). HalfNormal and HalfCauchy are on √v:
    then v is the positive root of v²/s² + count·v = squares, and of (count + 2)v² + (count·s² − squares)v =
    squares·s².
    """
    law = site.priors.get(parameter)
    if law is None:
        return torch.where(count > 0, squares / at_least_tiny(count), current)
    if law.family == "InverseGamma":
        a, b = law.arguments["concentration"], law.arguments["rate"]
        return (squares + 2 * b) / (count + 2 * a + 2)
    s2 = law.arguments["scale"] ** 2
    if law.family == "HalfNormal":
        new = 2 * squares / at_least_tiny(count + (count**2 + 4 * squares / s2).sqrt())
    else:
        middle = count * s2 - squares
        root = (middle**2 + 4 * (count + 2) * squares * s2).sqrt()
        # Of the two ways to write the root, the one that adds numbers of one sign.
        above = 2 * squares * s2 / at_least_tiny(middle + root)
        new = torch.where(middle > 0, above, (root - middle) / (2 * (count + 2)))
    return torch.where(count > 0, new, current)


def rate_mode(site: Site, parameter: str, events: Tensor, exposure: Tensor, current: Tensor) -> Tensor:
    """events/exposure: a Gamma(a, b) adds a − 1 events in an exposure of b; at least 0."""
    law = site.priors.get(parameter)
    if law is not None:
        more = law.arguments["concentration"] - 1 if law.family == "Gamma" else 0.0
        events, exposure = (events + more).clamp(min=0), exposure + law.arguments["rate"]
    return torch.where(exposure > 0, events / at_least_tiny(exposure), current)


def share_mode(site: Site, parameter: str, successes: Tensor, trials: Tensor, current: Tensor) -> Tensor:
    """successes/trials: a Beta adds its concentrations less one, where that leaves anything."""
    law = site.priors.get(parameter)
    if law is not None:
        failures = (trials - successes + law.arguments["concentration0"] - 1).clamp(min=0)
        successes = (successes + law.arguments["concentration1"] - 1).clamp(min=0)
        trials = successes + failures
    return torch.where(trials > 0, successes / at_least_tiny(trials), current)


def with_dirichlet(site: Site, parameter: str, counts: Tensor) -> Tensor:
    """Counts of the categories: a Dirichlet adds its concentrations less one; none falls below 0."""
    law = site.priors.get(parameter)
    return counts if law is None else (counts + law.arguments["concentration"] - 1).clamp(min=0)


def with_inverse_wishart(site: Site, parameter: str, scatter: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Scatter (…, D, D) and count (…, 1, 1) of a covariance: an InverseWishart adds its scale and df + D + 1."""
    law = site.priors.get(parameter)
    if law is None:
        return scatter, count
    more = law.arguments["df"][..., None, None] + scatter.shape[-1] + 1
    return scatter + law.arguments["scale"], count + more
