"""The ELBO of each row in its parts (F3.2): reconstruction, and the KL of each latent, dimension by dimension.

A discrete latent that the model sums out is taken as if the guide named it with its exact posterior r(c | x, z):
with the sites' log-probabilities ℓ, log Σ_c exp Σ ℓ = E_r[Σ ℓ] + H(r). So its KL(r ‖ p(c)) stands beside the
others, and all parts add up to the bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ppl_gen.infer.elbo import Sites, TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import State, sum_out
from ppl_gen.infer.importance import Weighted, weighted
from ppl_gen.infer.latent_moments import Expectation, Latent, Moments, latent_of, moments_of
from ppl_gen.program.marks import seen_key
from ppl_gen.program.program import Program

Rows = Mapping[str, Tensor]


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
        latents[name] = latent_of(latents[name].kl, moments, draws)
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
            moments, kl = moments_of(
                program, sites, name, values[name], over_guide, over_classes(name), len(shape)
            )
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
