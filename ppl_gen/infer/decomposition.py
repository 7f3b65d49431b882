"""The ELBO of each row in its parts (F3.2): reconstruction, and the KL of each latent, dimension by dimension.

A discrete latent that the model sums out is taken as if the guide named it with its exact posterior r(c | x, z):
with the sites' log-probabilities ℓ, log Σ_c exp Σ ℓ = E_r[Σ ℓ] + H(r). So its KL(r ‖ p(c)) stands beside the
others, and all parts add up to the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ppl_gen.infer.elbo import Sites, TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import State, sum_out
from ppl_gen.infer.importance import Weighted, weighted
from ppl_gen.program.families.cells import CellVector
from ppl_gen.program.families.flow import FlowDistribution
from ppl_gen.program.families.multivariate_normal import CholeskyNormal
from ppl_gen.program.families.normal import LOG_2PI, DiagonalNormal
from ppl_gen.program.marks import seen_key
from ppl_gen.program.program import Program

Rows = Mapping[str, Tensor]
Expectation = Callable[[Tensor], Tensor]


@dataclass
class Moments:
    """Sums over draws of what is known of one continuous latent, each (N, D).

    Args:
        kl: Σ κ_j, the terms of KL(q ‖ p) of each dimension; None where q or p does not factorise.
        log_prior: Σ log p(z_j); None where the prior has no known density of one dimension.
        mean: Σ of the guide's means.
        square: Σ of their squares.
        variance: Σ of the guide's variances.

    """

    kl: Tensor | None
    log_prior: Tensor | None
    mean: Tensor
    square: Tensor
    variance: Tensor

    def __add__(self, other: Moments) -> Moments:
        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else a + b

        return Moments(
            both(self.kl, other.kl),
            both(self.log_prior, other.log_prior),
            self.mean + other.mean,
            self.square + other.square,
            self.variance + other.variance,
        )


@dataclass
class Tally:
    """What some draws of the guide say of a block of rows.

    Args:
        log_weights: log p(x, z_s) − log q(z_s | x), discrete latents summed out, (S, N).
        bound: the terms of LB_d, whose mean it is, (S, N).
        kl: Σ_s κ_s of each latent, or of the latents that are summed out together, (N,).
        moments: of each continuous latent.

    """

    log_weights: Tensor
    bound: Tensor
    kl: dict[str, Tensor]
    moments: dict[str, Moments] = field(default_factory=dict)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            torch.cat([self.log_weights, other.log_weights]),
            torch.cat([self.bound, other.bound]),
            {name: own + other.kl[name] for name, own in self.kl.items()},
            {name: own + other.moments[name] for name, own in self.moments.items()},
        )


@dataclass
class Latent:
    """One latent of each row.

    Args:
        kl: KL(q ‖ p) of the row, (N,); of a discrete latent that the model sums out KL(p(c | x) ‖ p(c)).
        cells: that of each dimension's marginal, (N, D); None where it is not known.
        mean: of the posterior, (N, D); None of a discrete latent.
        variance: of the posterior, (N, D).
        mean_error: the standard error of `mean` over draws, (N, D).

    """

    kl: Tensor
    cells: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    mean_error: Tensor | None = None


@dataclass
class Parts:
    """A block of rows: log p(x) by importance weights, the ELBO with its error over draws, and the latents."""

    evidence: Weighted
    elbo: Tensor
    elbo_error: Tensor
    latents: dict[str, Latent]


def parts_of(program: Program, state: State, rows: Rows, shares: list[int]) -> Parts:
    """The parts of each row, from Σ shares draws, so many at a time."""
    tally = reduce(add, (tallied(program, state, rows, draws) for draws in shares))
    draws = len(tally.bound)
    # The mean of a single draw is exact where nothing was drawn.
    alone = torch.zeros_like(tally.bound[0], dtype=torch.float64)
    error = tally.bound.double().std(0) / math.sqrt(draws) if draws > 1 else alone
    latents = {name: Latent(kl / draws) for name, kl in tally.kl.items()}
    for name, moments in tally.moments.items():
        latents[name] = _latent(latents[name].kl, moments, draws)
    return Parts(weighted(tally.log_weights), tally.bound.double().mean(0), error, latents)


def tallied(program: Program, state: State, rows: Rows, draws: int) -> Tally:
    """Draw from the guide and tally; see `Tally`."""
    model, guide = functional_pair(program, state)
    values: dict[str, Tensor] = {}

    def heard(rows: Rows) -> Any:
        values.update(found := guide(rows))
        return found

    sites = TraceableELBO(draws).sites(model, heard, rows)
    total, posterior = _summed(sites)
    weights = reduce(add, (sites.q[name] for name in sites.q_axes), torch.zeros_like(total))
    shape = torch.broadcast_shapes(total.shape, weights.shape)
    axes = tuple(sites.q_axes.values())

    def over_guide(term: Tensor) -> Tensor:
        """Its mean over what the guide enumerates: (…, N) → (S, N), or (D, …, N) → (D, S, N)."""
        own = term.expand(term.shape[: max(0, term.ndim - len(shape))] + shape)
        if axes:
            own = (weights.exp() * own).sum(axes, keepdim=True)
        return own.reshape(*own.shape[: own.ndim - len(shape)], draws, -1)

    def over_classes(name: str) -> Expectation:
        return posterior.get(name, lambda term: term)

    expected = {name: over_classes(name)(log_p) for name, log_p in sites.p.items()}
    bound = reduce(torch.sub, sites.q.values(), total)
    unnamed = [q for name, q in sites.q.items() if name not in sites.q_axes]
    log_weights = reduce(torch.sub, unnamed, total).expand(shape)
    log_weights = log_weights.logsumexp(axes, keepdim=True) if axes else log_weights
    tally = Tally(log_weights.reshape(draws, -1), over_guide(bound), {})
    for name in sites.q:
        known = _known(rows, name)
        if name in program.continuous:
            moments, kl = _moments(program, sites, name, values[name], over_guide, over_classes(name))
            tally.moments[name] = moments
        else:
            kl = over_guide((sites.q[name] - expected[name]) * (1 - known))
        tally.kl[name] = kl.sum(0, dtype=torch.float64)
    classes = [name for name in sites.p_axes if name not in sites.q]
    if classes:
        given = [expected[n] * _known(rows, n) if n in classes else expected[n] for n in sites.p]
        kl = over_guide(reduce(add, given) - total)
        tally.kl[", ".join(classes)] = kl.sum(0, dtype=torch.float64)
    return tally


def _summed(sites: Sites) -> tuple[Tensor, dict[str, Expectation]]:
    """Log p with classes summed out, (…, N), and by site the expectation over its classes given all the rest."""
    if not sites.summed:
        return sum_out(list(sites.p.values()), []), {}
    whole = torch.broadcast_shapes(*(log_p.shape for log_p in sites.p.values()))
    leaves = {}
    for name, log_p in sites.p.items():
        own = (1,) * (len(whole) - log_p.ndim) + log_p.shape
        kept = [own[i] if i - len(whole) in sites.summed else size for i, size in enumerate(whole)]
        leaves[name] = log_p.expand(kept).detach().requires_grad_()
    with torch.enable_grad():
        total = sum_out(list(leaves.values()), sites.summed)
        slopes = torch.autograd.grad(total.sum(), list(leaves.values()))  # posterior probabilities

    def expectation(probabilities: Tensor) -> Expectation:
        def over(term: Tensor) -> Tensor:
            # log 0 counts nothing where its probability is 0
            joined = torch.where(probabilities > 0, probabilities * term, torch.zeros_like(term))
            return joined.sum(sites.summed, keepdim=True)

        return over

    found = {name: expectation(slope) for name, slope in zip(leaves, slopes, strict=True)}
    return total.detach(), found


def _known(rows: Rows, name: str) -> Tensor | float:
    """1 where a row has the label of a discrete latent: what it costs is then part of log p(x)."""
    seen = rows.get(seen_key(name))
    if seen is None:
        return 0.0
    return seen if seen.ndim == 1 else (seen > 0).all(-1).to(seen)


def _moments(
    program: Program,
    sites: Sites,
    name: str,
    value: Tensor,
    over_guide: Expectation,
    over_classes: Expectation,
) -> tuple[Moments, Tensor]:
    """Of one continuous latent: sums over the draws, and κ of each of them, (S, N)."""
    q, p = sites.q_laws[name], sites.p_laws[name]
    log_q, log_p = _log_cells(q, value, factorised=True), _log_cells(p, value, factorised=False)
    prior = None if log_p is None else over_guide(over_classes(log_p))  # (D, S, N)
    cells = None
    if _closed_form(program, sites, name):
        ratio, apart = (q.scale / p.scale).square(), ((q.loc - p.loc) / p.scale).square()
        cells = over_guide((0.5 * (ratio + apart - 1 - ratio.log())).movedim(-1, 0))
    elif log_q is not None and prior is not None and not isinstance(p, CholeskyNormal):
        cells = over_guide(log_q) - prior
    if cells is None:
        kl = over_guide(sites.q[name] - over_classes(sites.p[name]))
    else:
        kl = cells.sum(0)
    try:
        if isinstance(q, FlowDistribution):  # its moments are known from draws alone
            raise NotImplementedError
        mean, variance = q.mean.movedim(-1, 0), q.variance.movedim(-1, 0)
    except NotImplementedError:
        mean = value.movedim(-1, 0)
        variance = torch.zeros_like(mean)
    middle = over_guide(mean)
    within = over_guide(variance + mean.square()) - middle.square()  # over the guide's classes too

    def summed(each: Tensor | None) -> Tensor | None:
        return None if each is None else each.sum(-2, dtype=torch.float64).T  # (D, S, N) → (N, D)

    own = [summed(each) for each in (middle, middle.double().square(), within)]
    return Moments(summed(cells), summed(prior), *own), kl  # type: ignore[arg-type]


def _closed_form(program: Program, sites: Sites, name: str) -> bool:
    """Whether KL(q ‖ p) of two normals may stand for log q − log p at the draws.

    Not where the prior depends on what the guide draws after this latent, whose law then depends on its draw; nor
    where it depends on a class that is summed out, whose posterior does.
    """
    p = sites.p[name]
    if any(p.ndim >= -axis and p.shape[axis] > 1 for axis in sites.summed):
        return False
    drawn = list(program.recognition.draws)
    later = drawn[drawn.index(name) :]
    normal = all(isinstance(law[name], DiagonalNormal) for law in (sites.q_laws, sites.p_laws))
    return normal and not {*program.spec.node_parents(name)}.intersection(later)


def _log_cells(law: Any, value: Tensor, *, factorised: bool) -> Tensor | None:
    """The log-density of each dimension's marginal, (D, …, N); None where it is not known."""
    if isinstance(law, CellVector):
        return law.log_cells(value).movedim(-1, 0)
    if isinstance(law, DiagonalNormal):
        loc, scale = law.loc, law.scale
    elif isinstance(law, CholeskyNormal) and not factorised:
        loc, scale = law.loc, law.scale_tril.square().sum(-1).sqrt()
    else:
        return None
    return (-0.5 * (((value - loc) / scale).square() + LOG_2PI) - scale.log()).movedim(-1, 0)


def _latent(kl: Tensor, moments: Moments, draws: int) -> Latent:
    """From sums to the row's posterior moments and the KL of each dimension.

    Where the guide does not factorise, a dimension's KL is that of the normal with its posterior's variance: right
    where the marginal is normal, as under a full covariance, and too small elsewhere, a normal having the most
    entropy of all laws with its variance.
    """
    mean = moments.mean / draws
    between = (moments.square / draws - mean.square()).clamp(min=0)  # over draws of other latents, or of its own
    between = between * (draws / max(draws - 1, 1))
    variance = moments.variance / draws + between
    if moments.kl is not None:
        cells = moments.kl / draws
    elif moments.log_prior is not None:
        cells = -0.5 * (1 + LOG_2PI + variance.log()) - moments.log_prior / draws
    else:
        cells = None
    return Latent(kl, cells, mean, variance, (between / draws).sqrt())
