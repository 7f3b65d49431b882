"""Classes in order of decreasing weight: any permutation of a latent's categories is the same law."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_gen.data.stream import blocks_of
from ppl_gen.data.table import Table
from ppl_gen.infer import gates
from ppl_gen.infer.enumeration import State, posterior_marginals
from ppl_gen.infer.sites import site_statistics
from ppl_gen.program.half import Half
from ppl_gen.program.layers import Constant, LinearLayer, MLPLayer, SumLayer
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

CHUNK = 16_384


def by_decreasing_weight(
    program: Program, state: State, statistics: Mapping[str, Tensor]
) -> tuple[State, tuple[float, ...]]:
    """Permute each latent's categories; returns the state and the first latent's shares, largest first.

    `statistics` are the latents' expected statistics: how often each category is expected, given its parents. A
    latent keeps its order where something tells its categories apart; see `exchangeable`.
    """
    shares: dict[str, Tensor] = {}
    for name, counts in statistics.items():
        if program.generative.draws[name].sizes.k is None:
            continue
        totals = counts.reshape(-1, counts.shape[-1]).sum(0).cpu()
        shares[name] = totals / totals.sum()
        if exchangeable(program, name) and shares[name].isfinite().all():
            order = totals.argsort(descending=True, stable=True)
            state, shares[name] = permuted(program.generative, state, name, order), shares[name][order]
    return state, tuple(next(iter(shares.values()), torch.ones(1)).tolist())


def latent_statistics(program: Program, state: State, table: Table) -> dict[str, Tensor]:
    """The expected statistics of the enumerated latents over all rows."""
    draws = program.generative.draws
    totals: dict[str, Tensor] = {}
    with pyro_scope(), torch.no_grad():
        for block in blocks_of(table, CHUNK):
            rows = program.tensors(block.arrays, table.holes)
            own = None if block.weights is None else torch.tensor(block.weights)
            weights = None if own is None else own.to(program.device, program.dtype)
            _, marginals = posterior_marginals(program, state, rows, weights=weights)
            for name in program.enumerated:
                counts = site_statistics(program, draws[name], marginals[name], rows)
                totals[name] = totals.get(name, 0) + counts
    return totals


def exchangeable(program: Program, name: str) -> bool:
    """Whether any permutation of a latent's categories, carried out in all its tables, is the same law.

    Not where something tells them apart: known labels, different priors, written probabilities, an ordered table, a
    function that takes the latent one-hot, or several cells at once.
    """
    if name in program.schema.partial or program.priors.tells_apart(name):
        return False
    return _alike(program.generative, name)


def _alike(half: Half, name: str) -> bool:
    draw = half.draws[name]
    if draw.sizes.width > 1 or draw.node.support != "category":
        return False
    for slot in draw.slots.values():
        layer = half.layers[slot.layer]
        prior = isinstance(layer, LinearLayer) and slot.term.prior is not None  # type: ignore[attr-defined]
        if prior or not gates.has_classes(layer) or _users(half, slot.layer) > 1:
            return False
    for layer in half.layers.values():
        parts = list(layer.terms) if isinstance(layer, SumLayer) else [layer]
        for part in parts:
            enters = isinstance(part, LinearLayer | MLPLayer) and name in part.inputs.names
            indexed = isinstance(part, TableLayer) and name in part.lookup.names
            if enters or (indexed and (part.ordered or part.contrast)):
                return False
            assert not (isinstance(part, Constant) and indexed)
    return True


def _users(half: Half, layer: str) -> int:
    """How many parameters one named term stands for: permuting it for one latent would change another node."""
    return sum(slot.layer == layer for draw in half.draws.values() for slot in draw.slots.values())


def permuted(half: Half, state: State, name: str, order: Tensor) -> State:
    """The state with a latent's categories in another order."""
    new = dict(state)
    own = {slot.layer for slot in half.draws[name].slots.values()}
    for key in half.layers:
        for path in [p for p in state if p.startswith(f"generative.layers.{key}.")]:
            layer = half.layers[key]
            if key in own:
                new[path] = gates.reordered(layer, path, new[path], order)
            lookup = lookup_of(layer, path)
            for axis in axes_of(lookup, name):
                new[path] = new[path].index_select(axis, order.to(new[path].device))
    return new


def lookup_of(layer: torch.nn.Module, path: str) -> object:
    """What a parameter of a layer is indexed by, or None."""
    if isinstance(layer, SumLayer):
        position = int(path.split(".terms.")[1].split(".")[0])
        return lookup_of(layer.terms[position], path)
    free_bias = not isinstance(layer, LinearLayer) or layer.free_bias or not path.endswith(".bias")
    entering = ".inputs." in path
    return getattr(layer, "lookup", None) if free_bias and not entering else None


def axes_of(lookup: object, name: str) -> list[int]:
    """The axes that belong to a parent."""
    if lookup is None:
        return []
    axes, position = [], 0
    for parent, info in zip(lookup.names, lookup.parents, strict=True):  # type: ignore[attr-defined]
        if parent == name:
            axes.append(position)
        position += len(info.table)
    return axes
