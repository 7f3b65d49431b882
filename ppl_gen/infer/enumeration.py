"""The E-step for every discrete structure: enumerate with Pyro, sum out, differentiate.

Pyro evaluates the log-probability of each site at every value of the discrete latents; each latent has a batch
axis of its own, the i-th one axis −2−i, and rows are axis −1. Summing the latents out of their sum gives
log p(x_d) (F1), and the gradient of Σ_d log p(x_d) with respect to a site's log-probabilities is the posterior
probability of each of their entries: for a mixture the responsibilities of F7.1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_gen.program.marks import label_site
from ppl_gen.program.program import Program

State = dict[str, Tensor]
Rows = Mapping[str, Tensor]
Step = Callable[..., Any]

FIRST_ENUMERATED = -2  # axis −1 is the plate over units


def evaluated_sites(
    program: Program, state: State, rows: Rows
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Every site's log p by Pyro, (…enumerated, N), and the values of all nodes, enumerated ones at each of theirs.

    A log p is of size 1 along latents it does not depend on. A node that is known in part has a second site,
    which holds it to its labels.
    """
    model = partial(torch.func.functional_call, program, state, ("model", rows))
    enumerated = poutine.enum(model, first_available_dim=FIRST_ENUMERATED)
    recorded = poutine.trace(enumerated).get_trace()
    recorded.compute_log_prob()
    draws = program.generative.draws
    sites = [site for name in draws for site in (name, label_site(name)) if site in recorded.nodes]
    values = {name: recorded.nodes[name]["value"] for name in draws}
    return {name: recorded.nodes[name]["log_prob"] for name in sites}, {**rows, **values}


def site_log_probs(program: Program, state: State, rows: Rows) -> dict[str, Tensor]:
    """Every site's log p; see `evaluated_sites`."""
    return evaluated_sites(program, state, rows)[0]


def sum_out(factors: Sequence[Tensor], axes: Sequence[int]) -> Tensor:
    """Log Σ over the given axes of exp Σ factors, those axes kept with size 1; the cheapest join first."""
    factors, left = list(factors), list(axes)

    def holding(axis: int) -> list[Tensor]:
        return [f for f in factors if f.ndim >= -axis and f.shape[axis] > 1]

    def cost(axis: int) -> int:
        return math.prod(torch.broadcast_shapes(*(f.shape[:-1] for f in holding(axis))) or (1,))

    while left:
        axis = min(left, key=cost)
        joined = holding(axis)
        if joined:
            kept = [f for f in factors if all(f is not j for j in joined)]
            factors = [*kept, log_sum_exp(reduce(add, joined), axis)]
        left.remove(axis)
    return reduce(add, factors)


def log_sum_exp(x: Tensor, axis: int) -> Tensor:
    """Log Σ exp x along an axis, kept with size 1.

    Written out so that its gradient, the posterior, is made of the exponentials already computed: torch's own
    takes them a second time, and they are the dearest part of an E-step.
    """
    top = x.detach().amax(axis, keepdim=True).clamp(min=torch.finfo(x.dtype).min)  # −∞ − (−∞) is no number
    return (x - top).exp().sum(axis, keepdim=True).log() + top


def latent_axes(program: Program, rows: Rows) -> dict[str, int]:
    """The axis of each node that is enumerated over these rows."""
    return {name: FIRST_ENUMERATED - i for i, name in enumerate(program.enumerated_in(rows))}


def log_marginal(program: Program, state: State, rows: Rows) -> Tensor:
    """Log p(x_d) of each row, discrete latents summed out (F1): (N,)."""
    log_probs = site_log_probs(program, state, rows)
    return sum_out(list(log_probs.values()), list(latent_axes(program, rows).values())).reshape(-1)


def posterior_marginals(
    program: Program,
    state: State,
    rows: Rows,
    *,
    weights: Tensor | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log p(x_d), and for each site the posterior probability of each entry of its log-probability tensor.

    With `weights` (N,), a row's posterior counts that many times. With `start`, the logarithm of
    responsibilities over all latents at once (…enumerated, N), those take the place of the posterior: how a fit
    begins.
    """
    log_probs = site_log_probs(program, state, rows)
    return marginals_of(log_probs, list(latent_axes(program, rows).values()), weights, start)


def marginals_of(
    log_probs: dict[str, Tensor], axes: Sequence[int], weights: Tensor | None, start: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`posterior_marginals` from the sites' log p."""
    if start is not None:  # labels hold from the start
        labels = {name for name in log_probs if "." in name}
        log_probs = {n: v if n in labels else torch.zeros_like(v) for n, v in log_probs.items()}

    def total(log_probs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        factors = list(log_probs.values()) + ([] if start is None else [start])
        rows_log_marginal = sum_out(factors, axes).reshape(-1)
        weighted = rows_log_marginal if weights is None else rows_log_marginal * weights
        return weighted.sum(), rows_log_marginal

    marginals, rows_log_marginal = torch.func.grad(total, has_aux=True)(log_probs)
    return rows_log_marginal, marginals
