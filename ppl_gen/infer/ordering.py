"""Classes in order of decreasing weight: any permutation of a latent's categories is the same law."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import State, latent_axes, posterior_marginals
from ppl_gen.program.half import Half
from ppl_gen.program.layers import Constant, LinearLayer, MLPLayer, SumLayer, Table as TableLayer
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

CHUNK = 16_384


def by_decreasing_weight(program: Program, state: State, table: Table) -> tuple[State, tuple[float, ...]]:
    """Permute each latent's categories; returns the state and the first latent's shares, largest first.

    A latent keeps its order where the declaration tells its categories apart: written probabilities, an
    ordered table, a function that takes it one-hot, or several cells at once.
    """
    shares = class_shares(program, state, table)
    for name, share in shares.items():
        if not _exchangeable(program.generative, name) or not share.isfinite().all():
            continue
        order = share.argsort(descending=True, stable=True)
        state = _permuted(program.generative, state, name, order)
        shares[name] = share[order]
    first = next(iter(shares.values()), torch.ones(1))
    return state, tuple(first.tolist())


def class_shares(program: Program, state: State, table: Table) -> dict[str, Tensor]:
    """The mean posterior probability of every category of every enumerated latent."""
    tensors = program.tensors(table.arrays)
    totals = {name: torch.zeros(()) for name in program.enumerated}
    axes = latent_axes(program)
    with pyro_scope(), torch.no_grad():
        for start in range(0, table.n_units, CHUNK):
            rows = {name: tensor[start : start + CHUNK] for name, tensor in tensors.items()}
            _, marginals = posterior_marginals(program, state, rows)
            for name, axis in axes.items():
                own = marginals[name].movedim(axis, 0)
                totals[name] = totals[name] + own.reshape(own.shape[0], -1).sum(1).cpu()
    return {name: total / table.n_units for name, total in totals.items()}


def _exchangeable(half: Half, name: str) -> bool:
    draw = half.draws[name]
    if draw.sizes.width > 1 or draw.node.support != "category":
        return False
    for slot in draw.slots.values():
        if not isinstance(half.layers[slot.layer], TableLayer):
            return False
    for layer in half.layers.values():
        parts = list(layer.terms) if isinstance(layer, SumLayer) else [layer]
        for part in parts:
            enters = isinstance(part, LinearLayer | MLPLayer) and name in part.inputs.names
            indexed = isinstance(part, TableLayer) and name in part.lookup.names
            if enters or (indexed and (part.ordered or part.contrast)):  # type: ignore[union-attr]
                return False
            assert not (isinstance(part, Constant) and indexed)
    return True


def _permuted(half: Half, state: State, name: str, order: Tensor) -> State:
    new = dict(state)
    own = {slot.layer for slot in half.draws[name].slots.values()}
    for key in half.layers:
        for path in [p for p in state if p.startswith(f"generative.layers.{key}.")]:
            layer = half.layers[key]
            if key in own:
                new[path] = new[path].index_select(-1, order.to(new[path].device))
            lookup = _lookup_of(layer, path)
            for axis in _axes(lookup, name):
                new[path] = new[path].index_select(axis, order.to(new[path].device))
    return new


def _lookup_of(layer: torch.nn.Module, path: str) -> object:
    if isinstance(layer, SumLayer):
        position = int(path.split(".terms.")[1].split(".")[0])
        return _lookup_of(layer.terms[position], path)
    free_bias = not isinstance(layer, LinearLayer) or layer.free_bias or not path.endswith(".bias")
    entering = ".inputs." in path
    return getattr(layer, "lookup", None) if free_bias and not entering else None


def _axes(lookup: object, name: str) -> list[int]:
    if lookup is None:
        return []
    axes, position = [], 0
    for parent, info in zip(lookup.names, lookup.parents, strict=True):  # type: ignore[attr-defined]
        if parent == name:
            axes.append(position)
        position += len(info.table)
    return axes
