"""Starting classes in the order that the declaration gives them: `By(z, ordered=True)` increases in z.

A start numbers its classes at random, and an ordered table cannot follow where they fall: half of the starts of two
classes would begin at the point that the constraint mirrors.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_gen.data.table import Table
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import SumLayer
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.program import Program

Cells = NDArray[np.float64]


def relabelled(program: Program, table: Table, labels: Tensor) -> Tensor:
    """Starting labels, each latent's classes renumbered where a table that depends on it is ordered.

    Args:
        program: the model.
        table: N rows.
        labels: (R, N), a number for each combination of the latents' values, the first latent turning fastest.

    """
    ordered = _ordered(program)
    sizes = [program.generative.draws[name].sizes.levels for name in program.enumerated]
    shape = [int(np.prod(levels)) for levels in sizes[::-1]]
    if not ordered:
        return labels
    weights = np.ones(table.n_units) if table.weights is None else table.weights
    found = []
    for own in labels.numpy():
        codes = list(np.unravel_index(own, shape))
        for name, (draw, key) in ordered.items():
            axis = len(shape) - 1 - program.enumerated.index(name)
            member = (codes[axis] == np.arange(shape[axis])[:, None]) * weights  # (K, N)
            codes[axis] = _ranks(draw, key, table.arrays[draw.name], member)[codes[axis]]
        found.append(np.ravel_multi_index(codes, shape))
    return torch.from_numpy(np.stack(found))


def rearranged(program: Program, table: Table, shares: Tensor, start: int) -> Tensor:
    """Responsibilities drawn at random, their classes put in order block by block.

    Args:
        program: the model.
        table: the rows.
        shares: (R, …latents, n), the i-th latent on axis −2−i, of the rows from `start` on.
        start: see `shares`.

    """
    for name, (draw, key) in _ordered(program).items():
        axis = shares.ndim - 2 - program.enumerated.index(name)
        cells = table.arrays[draw.name][start : start + shares.shape[-1]]
        own = shares.movedim(axis, 1)  # (R, K, …, n)
        member = own.reshape(*own.shape[:2], -1, own.shape[-1]).sum(2).numpy()  # (R, K, n)
        # The class of rank k takes place k.
        orders = [torch.from_numpy(_ranks(draw, key, cells, each).argsort()) for each in member]
        shares = torch.stack([one[order] for one, order in zip(own, orders, strict=True)]).movedim(1, axis)
    return shares


def _ordered(program: Program) -> dict[str, tuple[Draw, str]]:
    """The latents that an ordered table of an observed node depends on: that node, and the table's parameter."""
    found: dict[str, tuple[Draw, str]] = {}
    for name in program.schema.roles.observed:
        draw = program.generative.draws[name]
        if draw.node.support == "category" or name in program.inner:
            continue
        for key, slot in draw.slots.items():
            for table in _tables(program.generative.layers[slot.layer]):
                parents = table.lookup.names if table.ordered else ()
                found |= {parent: (draw, key) for parent in parents if parent not in found}
    return {name: own for name, own in found.items() if _free(program, name)}


def _tables(layer: nn.Module) -> list[TableLayer]:
    parts = layer.terms if isinstance(layer, SumLayer) else [layer]
    return [part for part in parts if isinstance(part, TableLayer)]


def _free(program: Program, name: str) -> bool:
    """Whether a latent's classes have no labels yet that they would have to agree with."""
    return name in program.enumerated and name not in program.schema.partial


def _ranks(draw: Draw, key: str, cells: Cells, member: Cells) -> NDArray[np.intp]:
    """The place of each class (K,) by the parameter that its rows (N, D), weighted (K, N), suggest."""
    seen = ~np.isnan(cells)
    mass = np.maximum(member @ seen, 1e-300)  # (K, D)
    filled = np.where(seen, cells, 0.0)
    mean = member @ filled / mass
    spread = np.sqrt(np.maximum(member @ filled**2 / mass - mean**2, 0.0))
    begun = draw.family.beginning(torch.from_numpy(mean), torch.from_numpy(np.maximum(spread, 1e-300)))
    value = begun.get(key, torch.zeros(())).reshape(len(mean), -1).mean(1).numpy() if key in begun else mean
    if not (np.isfinite(value).all() and np.ptp(value) > 0):  # the same of all columns, as a t's df
        value = mean
    return value.reshape(len(mean), -1).mean(1).argsort(kind="stable").argsort()
