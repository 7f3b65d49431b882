"""Missing cells filled in from what is seen: p(x missing | x seen), latents summed out or drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.enumeration import evaluated_sites, latent_axes, marginals_of
from ppl_gen.program.marks import seen_key, seen_of
from ppl_gen.program.program import Program
from ppl_gen.results.draws import as_data, latents_given
from ppl_gen.results.queries import Array
from ppl_gen.results.rows import Rows, in_blocks, seeded


def imputed(program: Program, table: Table, *, draws: int | None, seed: int) -> dict[str, Array]:
    """Every node of the rows with its missing cells filled in: name → (N, …), or (S, N, …) with `draws`.

    Without draws a missing real or count cell is its conditional mean, a float, a category or 0/1 cell its most
    probable value, under the exact posterior of the discrete latents.
    """
    if program.continuous or program.recognition.draws:
        raise FitError("impute is exact inference, for models whose latents are all discrete")
    names = [name for name in table.arrays if name not in program.schema.roles.inputs]
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with seeded(program, seed):
        for rows in in_blocks(program, program.tensors(table.arrays, table.holes), draws or 1):
            found = _expected(program, rows) if draws is None else _drawn(program, rows, draws)
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
        if draw.node.support == "category":
            averaged = averaged.argmax(-1)
        elif draw.node.support == "boolean":
            averaged = (averaged > 0.5).to(averaged)
        found[name] = torch.where(seen, rows[name], averaged.to(rows[name].dtype))
    return found


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
