"""From what a user has (arrays, a frame, a CSV file) to a checked Table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import narwhals as nw
import numpy as np
from numpy.typing import NDArray

from ppl_gen.data import checks, columns, holes
from ppl_gen.data import weights as weighting
from ppl_gen.data.columns import Need as Need
from ppl_gen.data.levels import Distinct, distinct, encode, learn_levels, oddities
from ppl_gen.data.moments import centre_and_spread, constant
from ppl_gen.data.raw import Raw, as_frame, raw_entry, to_numbers
from ppl_gen.data.schema import Level, Schema
from ppl_gen.data.sizes import Claim, Sizes, declared_sizes, is_scalar, settle
from ppl_gen.data.sources import Rows
from ppl_gen.data.table import Table
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError


def read_table(
    data: Any, spec: Spec, *, schema: Schema | None = None, need: Need = "observed", weights: Any = None
) -> Table:
    """Read data for a declaration, check them in full and settle what the declaration left open.

    Args:
        data: a dictionary from node name to array, list, tensor, series or frame; one array (N, D), for a
            model with one leaf and no Input; any eager DataFrame that narwhals reads; or the path of a CSV,
            Parquet or .npy file, of a folder or a pattern of them, or `Rows`; or a Table, taken as it is. Rows
            are units. Arrays (N, 28, 28) are flattened row by row. NaN, None, NA, blank and masked cells are
            missing; Inputs may have none, nor may real nodes and counts that others depend on.
        spec: the declaration.
        schema: at predict time, the schema of the training table: column names, widths and levels are held
            against it. Default: none, the data are the training data and settle it.
        need: what must be there. "observed": every leaf and Input. "all": every leaf and Input, and of the
            other nodes that are observed in the schema those that cannot be summed over. "inputs": the Inputs.
            "any": at least one of them.
        weights: how often each row counts: N numbers, finite, at least 0 and not all 0, or the name of the
            column or entry that holds them, which is then not read as data. Moments are weighted. Default: once.

    Returns:
        A Table; `arrays` has an entry for each node the data have. An array that already is C-contiguous
        float64 is not copied, and never written.

    Raises:
        DataError: the data are wrong; the message names the column, the row and the count.
        SpecError: sizes that are declared twice and differ.

    Example:
        >>> from ppl_gen.declare.nodes import Categorical, Normal
        >>> from ppl_gen.declare.terms import By
        >>> spec = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"))})
        >>> table = read_table({"x": [[0.0, 1.0], [2.0, 1.5], [1.0, 0.5]]}, spec)
        >>> table.schema.roles.observed, table.schema.dims
        (('x',), {'z': 1, 'x': 2})
        >>> read_table({"x": [[0.0, 1.0, 2.0]]}, spec, schema=table.schema)
        Traceback (most recent call last):
        ...
        ppl_gen.errors.DataError: 'x' was fitted on 2 columns (x[0], x[1]) and the data give it 3

    """
    if need not in ("observed", "all", "inputs", "any"):
        raise DataError(f"need is {need!r}; choose from observed, all, inputs, any")
    if isinstance(data, Table):
        return data
    if isinstance(data, str | os.PathLike | Rows):
        from ppl_gen.data.stream_reading import (
            read_files,  # here and not above: it reads its chunks by read_table
        )

        return read_files(data, spec, schema=schema, need=need, weights=weights)
    beside = None if weights is None or isinstance(weights, str) else raw_entry("weights", weights, dim=None)
    if isinstance(data, Mapping):
        if isinstance(weights, str):
            data, beside = weighting.from_mapping(data, weights, spec)
        return _checked(columns.from_mapping(data, spec, schema), spec, schema, need, list(data), beside)
    native = as_frame(data)
    if isinstance(native, nw.DataFrame):
        if isinstance(weights, str):
            native, beside = weighting.from_frame(native, weights, spec)
        return _checked(columns.from_frame(native, spec, schema), spec, schema, need, native.columns, beside)
    if data is None:
        raise DataError("no data are given (None)")
    if isinstance(weights, str):
        raise DataError(
            f"the data are one array, which has no column {weights!r}: give the weights themselves"
        )
    return _checked(columns.from_array(data, spec, schema), spec, schema, need, (), beside)


def _checked(
    found: columns.Chosen,
    spec: Spec,
    schema: Schema | None,
    need: Need,
    there: Sequence[Any],
    beside: Raw | None,
) -> Table:
    chosen, notes = found
    columns.present(chosen, spec, schema, need, [str(name) for name in there])
    n_rows = checks.equal_lengths({name: raw.n_rows for name, raw in chosen.items()})
    weights = None
    if beside is not None:
        weights = weighting.checked(beside, beside.columns[0] if beside.named else "weights", n_rows)
    table = _again(chosen, spec, schema, n_rows) if schema else _first_time(chosen, spec, n_rows, weights)
    checks.within_totals(spec, {name: raw.columns for name, raw in chosen.items()}, table.arrays)
    discrete = discrete_nodes(spec, chosen)
    return replace(table, warnings=(*notes, *table.warnings), weights=weights, discrete=discrete)


def discrete_nodes(spec: Spec, names: Iterable[str]) -> frozenset[str]:
    """Those of the nodes whose values are categories, 0 and 1, or counts."""
    return frozenset(
        name for name in names if spec.is_category(name) or spec.nodes[name].support in ("boolean", "count")
    )


def _first_time(
    chosen: dict[str, Raw], spec: Spec, n_rows: int, weights: NDArray[np.float64] | None
) -> Table:
    """Training data: sizes, levels, centre and spread are settled here."""
    roles = spec.roles(present=tuple(chosen))
    declared = declared_sizes(spec)
    found = Sizes({}, {})
    for name, raw in chosen.items():
        check_width(name, raw.columns, declared.dims.get(name))
        found.dims[name] = Claim(len(raw.columns), "")
    arrays: dict[str, NDArray[Any]] = {}
    levels: dict[str, tuple[tuple[Level, ...] | None, ...]] = {}
    notes: list[str] = []
    for name, raw in chosen.items():
        if spec.is_category(name):
            own = [distinct(name, column, raw.column(j)) for j, column in enumerate(raw.columns)]
            claim = declared.k.get(name)
            per, k = learn_levels(own, None if claim is None else claim.size)
            found.k[name] = Claim(k, "")
            levels[name] = tuple(per)
            arrays[name] = _codes(own, per, k, scalar=is_scalar(spec, name, len(own)))
            inner = name not in (*spec.leaves, *spec.inputs)
            notes += [note for column in own for note in oddities(column, label=inner)]
        else:
            arrays[name] = checked_numbers(spec, name, raw)
    counts = None if weights is None else weights > 0
    lost = _lost(chosen, arrays, spec, {name: claim.size for name, claim in found.k.items()})
    for name, mask in lost.items():
        if mask is not None:
            holes.some_value(spec, name, chosen[name].columns, mask, counts)
    dims, sizes = settle(spec, declared, found)
    checks.enough_rows(roles, sizes, n_rows, 0.0 if weights is None else float(weights.sum()))
    moments = {
        name: centre_and_spread(array, weights)
        for name, array in arrays.items()
        if name not in levels and spec.nodes[name].support != "boolean"
    }
    gaps = frozenset(name for name, mask in lost.items() if mask is not None)
    schema = Schema(
        roles=roles,
        dims=dims,
        k=sizes,
        columns={name: raw.columns for name, raw in chosen.items()},
        levels=levels,
        centre={name: own[0] for name, own in moments.items()},
        spread={name: own[1] for name, own in moments.items()},
        partial=tuple(name for name in roles.observed if name in gaps and name not in spec.leaves),
        holes=tuple(name for name in roles.observed if name in gaps and name in spec.leaves),
    )
    same = {
        name: np.atleast_1d(constant(arrays[name] if counts is None else arrays[name][counts]))
        for name in roles.observed
    }
    notes += holes.empty_rows(roles.observed, lost)
    notes += checks.constant_columns(spec, schema, same, n_rows, whole=not gaps)
    return Table(schema, arrays, n_rows, tuple(notes), gaps)


def _again(chosen: dict[str, Raw], spec: Spec, schema: Schema, n_rows: int) -> Table:
    """New data for a model that has been fitted: everything is held against its schema."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, raw in chosen.items():
        known = schema.column_names(name)
        if len(raw.columns) != len(known):
            raise DataError(
                f"{name!r} was fitted on {len(known)} column{'s' * (len(known) != 1)} "
                f"({checks.listed(known)}) and the data give it {len(raw.columns)}"
            )
        if name in schema.k:
            own = [distinct(name, column, raw.column(j)) for j, column in enumerate(raw.columns)]
            per = list(schema.levels[name])
            arrays[name] = _codes(own, per, schema.k[name], scalar=is_scalar(spec, name, len(own)))
        else:
            arrays[name] = checked_numbers(spec, name, raw)
    lost = _lost(chosen, arrays, spec, schema.k)
    return Table(
        schema, arrays, n_rows, (), frozenset(name for name, mask in lost.items() if mask is not None)
    )


def _lost(
    chosen: Mapping[str, Raw], arrays: Mapping[str, NDArray[Any]], spec: Spec, k: Mapping[str, int]
) -> dict[str, holes.Mask | None]:
    """Which cells of each node are missing; refused where they must not be."""
    lost = {name: holes.lacking(array) for name, array in arrays.items()}
    for name, mask in lost.items():
        if mask is not None:
            holes.allowed(spec, name, chosen[name].columns, mask, k.get(name))
    return lost


def _codes(
    own: list[Distinct], levels: Sequence[tuple[Level, ...] | None], k: int, *, scalar: bool
) -> NDArray[np.int64]:
    codes = [encode(column, per, k) for column, per in zip(own, levels, strict=True)]
    return codes[0] if scalar else np.stack(codes, axis=1)  # (N,) or (N, dim)


CHECKS: dict[str, Callable[[str, Sequence[str], NDArray[np.float64]], None]] = {
    "boolean": checks.binary,
    "count": checks.counts,
    "positive": checks.positive,
}


def checked_numbers(spec: Spec, name: str, raw: Raw) -> NDArray[np.float64]:
    """The cells of a node that is no category, (N, width), each held against its support."""
    cells = to_numbers(name, raw)  # (N, width)
    checks.finite(name, raw.columns, cells)
    if check := CHECKS.get(spec.nodes[name].support):
        check(name, raw.columns, cells)
    return cells


def check_width(name: str, columns: Sequence[str], declared: Claim | None) -> None:
    """Refuse columns that are more or fewer than the declaration says."""
    width = len(columns)
    if declared is not None and declared.size != width:
        noun = "column" if width == 1 else "columns"
        raise DataError(
            f"{name!r} {declared.text} and the data give it {width} {noun}: {checks.listed(columns)}"
        )
