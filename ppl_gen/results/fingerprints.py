"""What tells the rows of a run from others, so that it is only ever gone on with on the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.stream import StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.errors import DataError


def fingerprint(table: Table) -> dict[str, Any]:
    """What tells these rows from others: SHA-256 of each node's cells, of the weights, and of names and levels.

    Those of a streamed table are read once for it; the pieces that its files are read in, on which the order of an
    epoch depends, are told apart as well.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.files import read_spec
        >>> spec = read_spec("gaussian_mixture")
        >>> one, other = (read_table([[1.0], [2.0], [x]], spec) for x in (3.0, 4.0))
        >>> fingerprint(one)["nodes"] == fingerprint(other)["nodes"]
        False

    """
    schema = table.schema.to_dict()
    shape = {key: schema[key] for key in ("roles", "dims", "k", "columns", "levels", "partial", "holes")}
    return {
        "rows": table.n_units,
        **_contents(table),
        "schema": hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest(),
    }


def check_same_data(known: Mapping[str, Any], table: Table) -> None:
    """Hold rows against the fingerprint of those that a run was begun on.

    Raises:
        DataError: they are others; the message says which.

    """
    now, others = fingerprint(table), "the run was begun on other data: "
    if now["rows"] != known["rows"]:
        raise DataError(f"{others}{known['rows']} rows then, {now['rows']} now")
    names = sorted({*known["nodes"], *now["nodes"]})
    changed = [name for name in names if known["nodes"].get(name) != now["nodes"].get(name)]
    if changed:
        raise DataError(f"{others}the values of {', '.join(map(repr, changed))} have changed")
    if now["weights"] != known["weights"]:
        raise DataError(f"{others}the weights have changed")
    if now.get("pieces") != known.get("pieces"):
        raise DataError(f"{others}the files' rows lie in other pieces, which are read in another order")
    if now["schema"] != known["schema"]:
        raise DataError(f"{others}names or levels of the columns have changed")


def _contents(table: Table) -> dict[str, Any]:
    if not isinstance(table, StreamedTable):
        weights = None if table.weights is None else _cells(table.weights)
        return {
            "nodes": {name: _cells(own) for name, own in sorted(table.arrays.items())},
            "weights": weights,
        }
    n, few, pieces = table.n_units, table.sample, hashlib.sha256()
    nodes = {name: _header(own.dtype, (n, *own.shape[1:])) for name, own in sorted(few.arrays.items())}
    weights = None if few.weights is None else _header(few.weights.dtype, (n,))
    for chunk in table.source.chunks():
        block = table.convert(chunk)
        pieces.update(f"{chunk.first} {block.n_rows},".encode())
        for name, found in nodes.items():
            found.update(np.ascontiguousarray(block.arrays[name]).data)
        if weights is not None:
            weights.update(np.ascontiguousarray(block.weights).data)
    return {
        "nodes": {name: found.hexdigest() for name, found in nodes.items()},
        "weights": None if weights is None else weights.hexdigest(),
        "pieces": pieces.hexdigest(),
    }


def _cells(array: NDArray[Any]) -> str:
    found = _header(array.dtype, array.shape)
    found.update(np.ascontiguousarray(array).data)
    return str(found.hexdigest())


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    return hashlib.sha256(f"{dtype.str} {shape}".encode())
