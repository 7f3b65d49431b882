"""Which columns of the data belong to which node (rule 16 of the language)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import narwhals as nw
import numpy as np
import pandas as pd

from ppl_gen.data import holes
from ppl_gen.data.checks import at, listed, where
from ppl_gen.data.raw import Raw, blank, frame_columns, header_of, is_numeric, raw_entry
from ppl_gen.data.schema import Schema
from ppl_gen.declare.declared import nearest
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError

Need = Literal["observed", "all", "inputs", "any"]
"""What must be in the data: see `read_table`."""

Chosen = tuple[dict[str, Raw], list[str]]
"""The columns of each node the data have, and warnings about columns left unread."""


def from_frame(frame: nw.DataFrame[Any], spec: Spec, schema: Schema | None) -> Chosen:
    """A frame's columns: those the training data had, else those under `columns:`, else by name, else all."""
    header = header_of(frame)
    wanted: Mapping[str, tuple[str, ...]]
    if schema is not None:
        wanted = _still_there(schema, header)
    elif spec.columns:
        wanted = spec.columns
        for node, columns in wanted.items():
            _all_there(columns, header, f"columns: gives {node!r}")
    else:
        wanted = _named_like_nodes(spec, header)
        if not wanted:
            return _all_to_the_leaf(frame, spec, header)
    return {
        node: frame_columns(frame, {name: header[name] for name in own}) for node, own in wanted.items()
    }, []


def from_mapping(data: Mapping[Any, Any], spec: Spec, schema: Schema | None) -> Chosen:
    """A dictionary's entries: node name to array, or the columns of a node one by one."""
    read = schema.columns if schema is not None else (spec.columns or {})
    chosen: dict[str, Raw] = {}
    used: set[Any] = set()
    closed = schema is not None or bool(spec.columns)
    for node in spec.nodes:
        columns = read.get(node, ())
        if node in data and (node in read or not closed):
            raw = raw_entry(node, data[node], dim=getattr(spec.nodes[node], "dim", None))
            chosen[node] = _in_order(node, raw, columns)
            used.add(node)
        elif columns and all(column in data for column in columns):
            parts = [raw_entry(column, data[column], dim=1) for column in columns]
            chosen[node] = Raw(tuple(columns), tuple(part.column(0) for part in parts))
            used.update(columns)
    unread = [key for key in data if key not in used]
    if not closed and unread:
        raise DataError(
            f"the data have an entry {unread[0]!r}, which is no node; the nodes are {', '.join(spec.nodes)}"
            f"{nearest(str(unread[0]), spec.nodes)}"
        )
    latent = [key for key in unread if key in spec.nodes]
    why = "columns: does not list it" if schema is None else "it was latent when the model was fitted"
    return chosen, [f"the entry {key!r} is not read: {why}" for key in latent]


def from_array(data: Any, spec: Spec, schema: Schema | None) -> Chosen:
    """One array, which belongs to the only leaf."""
    leaves = spec.leaves
    if len(leaves) != 1 or spec.inputs:
        needed = ", ".join(f"{name!r}: ..." for name in (*leaves, *spec.inputs))
        raise DataError(f"one array is given and the model needs several: pass a dictionary {{{needed}}}")
    leaf = leaves[0]
    raw = raw_entry(leaf, data, dim=None)
    if isinstance(raw.cells, tuple) or raw.shape == ():
        raise DataError(
            f"one array for {leaf!r} needs two dimensions, rows and columns, and is given one of length "
            f"{raw.n_rows}: reshape(-1, 1) makes it one column, or pass it by name, {{{leaf!r}: ...}}"
        )
    raw = raw_entry(leaf, data, dim=getattr(spec.nodes[leaf], "dim", None))
    own = (spec.columns or {}).get(leaf)
    if schema is None and own and len(own) == len(raw.columns):
        raw = Raw(own, raw.cells, shape=raw.shape)
    return {leaf: raw}, []


def present(
    chosen: Mapping[str, Raw], spec: Spec, schema: Schema | None, need: Need, there: Sequence[str]
) -> None:
    """Refuse data that lack what must be there.

    Args:
        chosen: what the data have, by node.
        spec: the declaration.
        schema: of the training data, at predict time.
        need: what must be there, as `read_table` takes it.
        there: the names of all columns or entries, for the message.

    Raises:
        DataError: it names the first node that is lacking.

    """
    leaves = (*spec.leaves, *spec.inputs)
    needed = leaves
    if schema is not None:
        inner = [name for name in schema.roles.observed if name not in spec.leaves]
        fixed = [name for name in inner if not holes.can_be_summed(spec, name, schema.k.get(name))]
        needed = {"observed": leaves, "all": (*leaves, *fixed), "inputs": spec.inputs, "any": ()}[need]
    lacking = [name for name in needed if name not in chosen]
    if not lacking and chosen:
        return
    name = (*lacking, *leaves)[0]
    known = schema.columns.get(name, (name,)) if schema is not None else (name,)
    what = "Input" if name in spec.inputs else "leaf" if name in spec.leaves else "node"
    columns_of = "" if known == (name,) else f" (columns {listed(known)})"
    unlisted = (
        " and columns: does not list it"
        if schema is None and spec.columns and name not in spec.columns
        else ""
    )
    raise DataError(
        f"the data lack the {what} {name!r}{columns_of}{unlisted}; "
        f"they have {listed(there) or 'nothing'}"
        f"{nearest(known[0], [t for t in there if t not in chosen])}"
    )


def _still_there(schema: Schema, header: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    wanted = {}
    for node, columns in schema.columns.items():
        if any(column in header for column in columns):
            _all_there(columns, header, f"{node!r} was fitted on")
            wanted[node] = columns
    return wanted


def _all_there(columns: tuple[str, ...], header: Mapping[str, Any], who: str) -> None:
    lacking = [column for column in columns if column not in header]
    if lacking:
        raise DataError(
            f"{who} the column{'s' * (len(columns) != 1)} {listed(columns)}, "
            f"and the data lack {listed(lacking)}; "
            f"they have {listed(header)}{nearest(lacking[0], [h for h in header if h not in columns])}"
        )


def _named_like_nodes(spec: Spec, header: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Columns x, or x[0], x[1], ... for each node x that has them."""
    wanted: dict[str, tuple[str, ...]] = {}
    for node in spec.nodes:
        indexed = [column for column in header if re.fullmatch(rf"{node}\[\d+\]", column)]
        if node in header and indexed:
            raise DataError(f"the data have a column {node!r} and also {indexed[0]!r}: which is meant?")
        if node in header:
            wanted[node] = (node,)
        elif indexed:
            run = tuple(f"{node}[{j}]" for j in range(len(indexed)))
            _all_there(run, header, f"node {node!r} needs")
            wanted[node] = run
    return wanted


def _all_to_the_leaf(frame: nw.DataFrame[Any], spec: Spec, header: Mapping[str, Any]) -> Chosen:
    """All numeric columns; if there is none, all columns, as the items of a categorical leaf."""
    leaves = spec.leaves
    if len(leaves) != 1 or spec.inputs:
        first = [*leaves, *spec.inputs][0]
        raise DataError(
            f"the data lack {first!r}: no column is named like a node; the nodes are {listed(spec.nodes)}, "
            f"the columns {listed(header)}; rename them, or list them under columns:"
        )
    leaf = leaves[0]
    cells = {name: frame[:, j].to_numpy() for name, j in header.items()}
    numeric = [name for name in header if is_numeric(cells[name])]
    others = [name for name in header if name not in numeric]
    if not numeric and spec.is_category(leaf):
        return {leaf: frame_columns(frame, header)}, []
    for name in others:
        _not_spoilt(leaf, name, cells[name])
    if not numeric:
        raise DataError(f"{leaf!r} needs numbers and no column holds them; the columns are {listed(header)}")
    notes = []
    if others:
        noun = "column is" if len(others) == 1 else "columns are"
        notes.append(f"not numeric, so not read: {len(others)} {noun} left out ({listed(others)})")
    return {leaf: frame_columns(frame, {name: header[name] for name in numeric})}, notes


def _not_spoilt(leaf: str, name: str, cells: Any) -> None:
    """A column of numbers with a few words in it must not silently count as text."""
    lost = blank(cells)
    parsed = np.asarray(pd.to_numeric(pd.Series(cells), errors="coerce").notna())
    if cells.dtype.kind in "OUS" and parsed.any() and parsed[~lost].mean() >= 0.5:
        bad = ~parsed & ~lost
        row = int(bad.argmax())
        what = f"has {cells[row]!r} {at(row)}" if bad.any() else "its numbers are written as text"
        raise DataError(
            f"{where(name, leaf)} is numeric in most rows, but {what}: "
            "correct it, or list the columns to read under columns:"
        )


def _in_order(node: str, raw: Raw, columns: tuple[str, ...]) -> Raw:
    """A frame given for one node: its columns by name, where the names are known."""
    if not columns or not raw.named or len(columns) == len(raw.columns) == 1:
        return raw
    if columns[0] == f"{node}[0]" and not set(columns) & set(raw.columns):
        return raw  # the model met an array before: there are no names to match, only a width
    _all_there(columns, dict.fromkeys(raw.columns), f"{node!r} has")
    return raw.select(columns)
