"""Missing cells filled in from what is seen: p(x missing | x seen), latents summed out or drawn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer import linear_gaussian, linear_gaussian_posterior
from ppl_gen.infer.enumeration import evaluated_sites, latent_axes, marginals_of
from ppl_gen.program.half import Draw
from ppl_gen.program.marks import seen_key, seen_of
from ppl_gen.program.program import Program
from ppl_gen.results.draws import as_data, latents_given
from ppl_gen.results.queries import Array
from ppl_gen.results.rows import Rows, in_blocks, read_in_parts, seeded

DRAWS = 200  # of the latents that a mean is averaged over, where they are drawn


def imputed_by_part(
    program: Program, rows: Any, *, draws: int | None, seed: int
) -> Iterator[dict[str, Array]]:
    """`imputed` of all rows; a chunk at a time where they are files to be streamed."""
    for i, table in enumerate(read_in_parts(program, rows)):
        yield imputed(program, table, draws=draws, seed=seed + i)


def imputed(program: Program, table: Table, *, draws: int | None, seed: int) -> dict[str, Array]:
    """Every node of the rows with its missing cells filled in: name → (N, …), or (S, N, …) with `draws`.

    Without draws a missing real or count cell is its conditional mean, a float, a category or 0/1 cell its most
    probable value: under the exact posterior of the discrete latents or, where a latent is continuous, averaged
    over `DRAWS` draws of the guide.
    """
    sampled = bool(program.continuous or program.recognition.draws)
    names = [name for name in table.arrays if name not in program.schema.roles.inputs]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with seeded(program, seed):
        for rows in in_blocks(program, program.tensors(table.arrays, table.holes), draws or DRAWS**sampled):
            if linear_gaussian.exact(program):
                found = linear_gaussian_posterior.completed(program, program.state_dict(), rows, draws)
            elif draws is not None:
                found = _drawn(program, rows, draws)
            else:
                found = _averaged(program, rows) if sampled else _expected(program, rows)
            for name in names:
                whole = rows[name] if draws is None else rows[name].expand(draws, *rows[name].shape)
                parts[name].append(found.get(name, whole).cpu())
    axis = 0 if draws is None else 1
    return {
        name: _as_filled(program, name, torch.cat(own, axis).numpy(), drawn=draws is not None)
        for name, own in parts.items()
    }


def _as_filled(program: Program, name: str, values: Array, *, drawn: bool) -> Array:
    """As the data write it; the mean of a count is no count, and stays a float."""
    count = program.spec.nodes[name].support == "count"
    return values if count and not drawn else as_data(program, name, values)


def _marked(program: Program, rows: Rows) -> dict[str, Tensor]:
    """The nodes with missing cells, and which of their cells are seen."""
    found = {}
    for name in program.generative.draws:
        if seen_key(name) in rows:
            found[name] = rows[seen_key(name)] > 0
        elif name in rows and name in program.schema.k:
            found[name] = rows[name] >= 0
    return {name: seen for name, seen in found.items() if not bool(seen.all())}


def _drawn(program: Program, rows: Rows, draws: int) -> Rows:
    """Latents from their joint posterior given the seen cells, then the missing cells given those: (S, N, …)."""
    count = len(next(iter(rows.values())))
    values = {name: value.repeat(draws, *(1,) * (value.ndim - 1)) for name, value in rows.items()}
    values |= latents_given(program, rows, draws)
    found = {}
    for name, seen in _marked(program, rows).items():
        if name in program.inner:
            found[name] = values[name]
        else:
            distribution = program.generative.distribution(name, dict(values)).expand((draws * count,))
            if program.generative.draws[name].family.joined:
                drawn = distribution.where_seen(seen_of(values, name, joined=True)).sample_rest(values[name])
            else:
                drawn = distribution.sample()
            found[name] = torch.where(seen.repeat(draws, *(1,) * (seen.ndim - 1)), values[name], drawn)
    return {name: value.reshape(draws, count, *value.shape[1:]) for name, value in found.items()}


def _expected(program: Program, rows: Rows) -> Rows:
    """Conditional means and most probable values, averaged over the exact posterior of the latents."""
    log_probs, values = evaluated_sites(program, program.state_dict(), rows)
    axes = latent_axes(program, rows)
    _, marginals = marginals_of(log_probs, list(axes.values()), None, None)
    found = {}
    for name, seen in _marked(program, rows).items():
        draw = program.generative.draws[name]
        if name in program.inner:
            own = marginals[name].movedim(axes[name], 0)
            best = own.reshape(own.shape[0], -1, own.shape[-1]).sum(1).argmax(0)
            found[name] = draw.family.support(draw.sizes).to(rows[name])[best]
            continue
        mean, event = _means(program, name, rows, values)
        weights = marginals[name]  # of the node's own parents: (…, N)
        averaged = mean * weights.reshape(*weights.shape, *(1,) * event)
        averaged = averaged.reshape(-1, *averaged.shape[-1 - event :]).sum(0)
        found[name] = _filled(draw, rows[name], seen, averaged)
    return found


def _averaged(program: Program, rows: Rows) -> Rows:
    """Conditional means and most probable values, averaged over draws of the latents given the seen cells."""
    count = len(next(iter(rows.values())))
    values = {name: value.repeat(DRAWS, *(1,) * (value.ndim - 1)) for name, value in rows.items()}
    drawn = latents_given(program, rows, DRAWS)
    values |= drawn
    found = {}
    for name, seen in _marked(program, rows).items():
        if name in program.inner:
            found[name] = drawn[name].reshape(DRAWS, count, *drawn[name].shape[1:]).mode(0).values
            continue
        mean, _ = _means(program, name, values, values)
        mean = mean.expand(DRAWS * count, *mean.shape[1:])
        averaged = mean.reshape(DRAWS, count, *mean.shape[1:]).mean(0)
        found[name] = _filled(program.generative.draws[name], rows[name], seen, averaged)
    return found


def _filled(draw: Draw, values: Tensor, seen: Tensor, averaged: Tensor) -> Tensor:
    """The seen cells as they are, the others from their averages: of a category those of each level."""
    if draw.node.support == "category":
        averaged = averaged.argmax(-1)
    elif draw.node.support == "boolean":
        averaged = (averaged > 0.5).to(averaged)
    return torch.where(seen, values, averaged.to(values.dtype))


def _means(program: Program, name: str, rows: Rows, values: Rows) -> tuple[Tensor, int]:
    """E[x | parents, seen cells] over the parents' values, and how many axes a row of it has.

    Of categories the probabilities of each level.
    """
    draw = program.generative.draws[name]
    distribution = program.generative.distribution(name, dict(values))
    if draw.family.joined:
        return distribution.where_seen(seen_of(rows, name, joined=True)).given_seen(rows[name])[0], 1
    if draw.node.support == "category":
        return distribution.logits.exp(), 1 if draw.sizes.scalar else 2
    mean = distribution.mean
    # A t of df 1 or less has no mean; its location is what is left to say of the cell.
    return (torch.where(mean.isnan(), distribution.loc, mean) if draw.node.family == "StudentT" else mean), 1
