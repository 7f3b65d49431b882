"""Names of single numbers among the parameters: "x.loc[z=0, waiting]"."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl_gen.data.schema import default_columns
from ppl_gen.infer.natural import Leaf
from ppl_gen.program.layers import Constant, LinearLayer, MLPLayer, Table
from ppl_gen.program.program import Program

MATRICES = ("covariance", "lower_cholesky")


def leaf_name(leaf: Leaf) -> str:
    """The array's own name: "x.loc", "y.loc.weight"; a term of a sum by its position, "y.loc.0"."""
    return ".".join([leaf.node, leaf.parameter, *map(str, leaf.place)])


def cell_names(program: Program, leaf: Leaf, shape: tuple[int, ...]) -> list[str]:
    """The name of each of its numbers, in C order."""
    labels = axis_labels(program, leaf, shape)
    name = leaf_name(leaf)
    cells = (", ".join(filter(None, cell)) for cell in itertools.product(*labels))
    return [f"{name}[{cell}]" if cell else name for cell in cells]


def axis_labels(program: Program, leaf: Leaf, shape: tuple[int, ...]) -> list[list[str]]:
    """A label for every position along every axis; empty where an axis has one position and no name."""
    found: list[list[str]] = []
    if isinstance(leaf.layer, Table):
        found += _levels_of(program, leaf.layer.lookup)
        found += _own(program, leaf, shape[len(found) :])
    elif isinstance(leaf.layer, Constant):
        found += _own(program, leaf, shape)
    elif isinstance(leaf.layer, LinearLayer):
        kind = leaf.place[-1]
        if kind == "weight" or leaf.layer.free_bias:
            found += _levels_of(program, leaf.layer.lookup)
        found.append(_outputs(program, leaf, leaf.layer))
        if kind == "weight":
            found.append(_inputs(program, leaf.layer))
    elif isinstance(leaf.layer, MLPLayer):
        found += _levels_of(program, leaf.layer.lookup)
    known = [labels for labels, size in zip(found, shape, strict=False) if len(labels) == size]
    return known + [[str(i) for i in range(size)] for size in shape[len(known) :]]


def _levels_of(program: Program, lookup: Any) -> list[list[str]]:
    found = []
    for name, parent in zip(lookup.names, lookup.parents, strict=True):
        for cell, size in enumerate(parent.table):
            label = name if parent.scalar or len(parent.table) == 1 else f"{name}[{cell}]"
            found.append([f"{label}={level}" for level in _level_names(program, name, size, cell)])
    return found


def _level_names(program: Program, name: str, size: int, cell: int = 0) -> list[str]:
    """A category's levels as the data wrote them; codes where it has none."""
    levels = program.schema.levels.get(name, ())
    own = levels[cell] if cell < len(levels) else None
    return [str(own[i]) if own is not None and i < len(own) else str(i) for i in range(size)]


def _columns(program: Program, name: str, size: int) -> list[str]:
    if size == 1:
        return [""]
    names = program.schema.column_names(name)
    if len(names) != size or names == default_columns(name, size):
        return [str(i) for i in range(size)]
    return list(names)


def _own(program: Program, leaf: Leaf, shape: Sequence[int]) -> list[list[str]]:
    """The axes of the parameter itself: dimensions by column, categories by level."""
    draw = program.generative.draws[leaf.node]
    if draw.node.support == "category" and leaf.parameter in ("probs", "logits") and shape:
        levels = _level_names(program, leaf.node, shape[-1])
        return [_columns(program, leaf.node, size) for size in shape[:-1]] + [levels]
    return [_columns(program, leaf.node, size) for size in shape]


def _outputs(program: Program, leaf: Leaf, layer: LinearLayer) -> list[str]:
    draw, out = program.generative.draws[leaf.node], int(np.prod(layer.own))
    if draw.node.support == "category":
        levels = _level_names(program, leaf.node, layer.own[-1] + layer.reference)[layer.reference :]
        columns = _columns(program, leaf.node, layer.own[0]) if len(layer.own) > 1 else [""]
        return [", ".join(filter(None, cell)) for cell in itertools.product(columns, levels)]
    return _columns(program, leaf.node, out)


def _inputs(program: Program, layer: LinearLayer) -> list[str]:
    found: list[str] = []
    for name, parent, width in zip(
        layer.inputs.names, layer.inputs.parents, layer.inputs.widths, strict=True
    ):
        if parent.kind == "category":
            per = width // parent.width
            for cell in range(parent.width):
                levels = _level_names(program, name, parent.levels or 2, cell)[-per:]
                label = name if parent.width == 1 else f"{name}[{cell}]"
                found += [f"{label}={level}" for level in levels]
        elif name in program.schema.dims:
            found += program.schema.column_names(name) if width > 1 else [name]
        else:
            found += [f"{name}[{i}]" for i in range(width)]
    return found


def shown(program: Program, leaf: Leaf, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which numbers a table lists: one triangle of a matrix, and only levels that a column has."""
    kept = np.ones(shape, dtype=bool)
    if leaf.constraint in MATRICES:
        kept &= np.tril(np.ones(shape[-2:], dtype=bool))
    draw = program.generative.draws[leaf.node]
    levels = program.schema.levels.get(leaf.node)
    if draw.node.support == "category" and leaf.constraint == "simplex" and levels and not draw.sizes.scalar:
        counts = program.schema.level_counts(leaf.node)
        if len(counts) == shape[-2]:
            kept &= np.arange(shape[-1]) < np.array(counts)[:, None]
    return kept
