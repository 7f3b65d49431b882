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

from ppl_gen.program.families import Site, in_standard_units
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import Constant, Table
from ppl_gen.program.program import Program

State = dict[str, Tensor]
Rows = Mapping[str, Tensor]
Step = Callable[..., Any]

FIRST_ENUMERATED = -2  # axis −1 is the plate over units


def site_log_probs(program: Program, state: State, rows: Rows) -> dict[str, Tensor]:
    """Every site's log p, by Pyro: (…enumerated, N), of size 1 along latents it does not depend on."""
    model = partial(torch.func.functional_call, program, state, ("model", rows))
    enumerated = poutine.enum(model, first_available_dim=FIRST_ENUMERATED)
    recorded = poutine.trace(enumerated).get_trace()
    recorded.compute_log_prob()
    return {name: recorded.nodes[name]["log_prob"] for name in program.generative.draws}


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


def latent_axes(program: Program) -> dict[str, int]:
    """The axis of each enumerated latent."""
    return {name: FIRST_ENUMERATED - i for i, name in enumerate(program.discrete)}


def log_marginal(program: Program, state: State, rows: Rows) -> Tensor:
    """Log p(x_d) of each row, discrete latents summed out (F1): (N,)."""
    log_probs = site_log_probs(program, state, rows)
    return sum_out(list(log_probs.values()), list(latent_axes(program).values())).reshape(-1)


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
    axes = list(latent_axes(program).values())
    if start is not None:
        log_probs = {name: torch.zeros_like(value) for name, value in log_probs.items()}

    def total(log_probs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        factors = list(log_probs.values()) + ([] if start is None else [start])
        rows_log_marginal = sum_out(factors, axes).reshape(-1)
        weighted = rows_log_marginal if weights is None else rows_log_marginal * weights
        return weighted.sum(), rows_log_marginal

    marginals, rows_log_marginal = torch.func.grad(total, has_aux=True)(log_probs)
    return rows_log_marginal, marginals


def expectation_step(program: Program, only: Sequence[str] | None = None) -> Step:
    """The E-step on one block: (state, rows, weights, start=None) → Σ_d w_d log p(x_d), statistics by site.

    Sums of squares cancel far from 0: state and rows are to be in standard units (`Standard`).
    `only` names the sites whose expected statistics are wanted; all of them by default.
    """
    draws = program.generative.draws
    wanted = [draws[name] for name in (draws if only is None else only)]

    def step(
        state: State, rows: Rows, weights: Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with in_standard_units():
            rows_log_marginal, marginals = posterior_marginals(
                program, state, rows, weights=weights, start=start
            )
        statistics = {
            draw.name: site_statistics(program, draw, marginals[draw.name], rows) for draw in wanted
        }
        return (rows_log_marginal * weights).sum(), statistics

    return step


def table_parents(draw: Draw, program: Program) -> dict[str, tuple[str, ...]]:
    """For each parameter of a node, the parents its table is indexed by."""
    layers = {key: program.generative.layers[slot.layer] for key, slot in draw.slots.items()}
    return {key: layer.lookup.names if isinstance(layer, Table) else () for key, layer in layers.items()}


def parent_levels(draw: Draw, program: Program) -> dict[str, tuple[int, ...]]:
    """Every parent of a node's tables, with its axes, in the order of their joint table."""
    levels: dict[str, tuple[int, ...]] = {}
    for slot in draw.slots.values():
        layer = program.generative.layers[slot.layer]
        if isinstance(layer, Table):
            parents = zip(layer.lookup.names, layer.lookup.parents, strict=True)
            levels.update({name: parent.table for name, parent in parents})
    return levels


def site_statistics(program: Program, draw: Draw, marginal: Tensor, rows: Rows) -> Tensor:
    """Σ_d P(parents | x_d) Φ: (joint axes of the parents…, P)."""
    levels = parent_levels(draw, program)
    latent = draw.name not in rows
    weights = _joint_weights(program, [*levels, draw.name] if latent else list(levels), marginal, rows)
    shape = sum(levels.values(), ())
    if latent:  # its values are the rows, weighted by how probable each is
        totals = weights.sum(-1)  # (parents…, own values)
        support = draw.family.support(draw.sizes).to(marginal.device)
        summed = draw.family.expected_statistics(totals, support, draw.sizes)
    else:
        summed = draw.family.expected_statistics(weights, rows[draw.name], draw.sizes)
    return summed.reshape((*shape, summed.shape[-1]))


def _joint_weights(program: Program, names: list[str], marginal: Tensor, rows: Rows) -> Tensor:
    """(one axis a name…, N): latent names by their enumerated axis, observed ones by indicators."""
    axes = latent_axes(program)
    depth = 1 + len(axes)
    full = marginal.reshape((1,) * (depth - marginal.ndim) + tuple(marginal.shape))
    wanted = [name for name in names if name in axes]
    order = [axes[name] + depth for name in wanted]
    others = [axis for axis in range(depth - 1) if axis not in order]
    weights = full.permute(*order, *others, depth - 1)
    weights = weights.reshape((*weights.shape[: len(order)], weights.shape[-1]))
    for position, name in enumerate(names):
        if name not in axes:
            weights = weights.unsqueeze(position) * _indicators(program, name, rows, weights, position)
    return weights


def _indicators(program: Program, name: str, rows: Rows, weights: Tensor, position: int) -> Tensor:
    parent = program.generative.parent(name)
    value = rows[name].long()
    cells = value.unsqueeze(-1) if parent.scalar else value  # (N, d)
    flat = torch.zeros_like(cells[..., 0])
    for cell, size in enumerate(parent.table):
        flat = flat * size + cells[..., cell]
    levels = torch.arange(math.prod(parent.table), device=flat.device)
    indicators = (flat == levels.unsqueeze(-1)).to(weights.dtype)  # (levels, N)
    return indicators.reshape((levels.shape[0],) + (1,) * (weights.ndim - 1 - position) + (-1,))


def maximisation_step(program: Program, only: Sequence[str] | None = None) -> Step:
    """The M-step (F7.3): (state, statistics, bounds) → the new state, and whether it is regular.

    `bounds[name]` holds the variance floor and jitter of an observed node, each (D,).
    """
    draws = program.generative.draws
    wanted = [draws[name] for name in (draws if only is None else only)]

    def step(
        state: State, statistics: dict[str, Tensor], bounds: dict[str, tuple[Tensor, Tensor]]
    ) -> tuple[State, Tensor]:
        new, regular = dict(state), []
        for draw in wanted:
            current, site = site_of(program, draw, state)
            working, sound = draw.family.maximise(statistics[draw.name], current, site, *bounds[draw.name])
            regular.append(sound)
            for key, slot in draw.slots.items():
                if key not in site.fixed:
                    path = f"generative.layers.{slot.layer}.table"
                    predictor = slot.constraint.predictor(working[key])
                    new[path] = site.keep(key, predictor, state[path])
        return new, torch.stack(regular).all()

    return step


def site_of(program: Program, draw: Draw, state: State) -> tuple[dict[str, Tensor], Site]:
    """A node's current working parameters, and where they lie."""
    current, shared, fixed, free = {}, [], [], {}
    for key, slot in draw.slots.items():
        layer, path = program.generative.layers[slot.layer], f"generative.layers.{slot.layer}"
        if isinstance(layer, Constant):
            if layer.n_free == 0:
                fixed.append(key)
                predictor = state[f"{path}.value"]
            else:
                free[key] = state[f"{path}.free"]
                predictor = torch.where(free[key], state[f"{path}.table"], state[f"{path}.value"])
        else:
            predictor = state[f"{path}.table"]
            assert isinstance(layer, Table)
            own = predictor.shape[len(layer.lookup.levels) :]
            if slot.target.shareable and own[0] == 1 and slot.target.axes[0] != 1:
                shared.append(key)
        current[key] = slot.constraint.working(predictor)
    levels, tables = parent_levels(draw, program), table_parents(draw, program)
    return current, Site(draw.sizes, levels, tables, frozenset(shared), frozenset(fixed), free)
