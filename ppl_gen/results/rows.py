"""Rows for a query: read against the training schema, cut in blocks, drawn under one seed."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_gen.data.checks import listed
from ppl_gen.data.reading import Need, read_table
from ppl_gen.data.sizes import is_scalar
from ppl_gen.data.sources import LARGEST_TABLE
from ppl_gen.data.sources import Rows as FileRows
from ppl_gen.data.stream_files import open_rows
from ppl_gen.data.stream_reading import chunk_tables
from ppl_gen.data.table import Table
from ppl_gen.errors import DataError, FitError
from ppl_gen.infer.linear_gaussian import exact
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

Rows = dict[str, Tensor]
Answer = TypeVar("Answer")

CELLS = 4_000_000  # numbers of one intermediate result held at a time


def read_rows(program: Program, rows: Any, need: Need | None = None, weights: Any = None) -> Table:
    """New rows, held against the columns, widths and levels of the training data, with its warnings.

    Args:
        program: the fitted model.
        rows: what `fit` takes.
        need: what must be there (`read_table`). Default: with a continuous latent every observed node; else the
            Inputs and at least one node. A leaf that the rows lack is then missing in every row, and integrated
            out; a discrete node that something depends on is summed out.
        weights: how often each row counts, as `fit` takes them.

    Raises:
        DataError: something is lacking, or does not fit.

    """
    if need is None:
        need = default_need(program)
    table = read_table(rows, program.spec, schema=program.schema, need=need, weights=weights)
    for note in table.warnings:
        warnings.warn(note, UserWarning, stacklevel=3)
    _complete_for_the_guide(program, table)
    return _with_lacking_leaves(program, table) if need == "any" else table


def read_in_parts(program: Program, rows: Any, weights: Any = None) -> Iterator[Table]:
    """`read_rows`; where the rows are files to be streamed, a table for each chunk of them."""
    source = open_rows(rows) if isinstance(rows, str | os.PathLike | FileRows) else None
    if source is None or not (isinstance(rows, FileRows) or source.bytes > LARGEST_TABLE):
        yield read_rows(program, rows, weights=weights)
        return
    if weights is not None:
        raise DataError("rows that are read in parts count once each: leave weights out, or read them whole")
    need = default_need(program)
    for table in chunk_tables(source, program.spec, program.schema, need):
        _complete_for_the_guide(program, table)
        yield _with_lacking_leaves(program, table) if need == "any" else table


def answered(program: Program, rows: Any, seed: int, ask: Callable[[Table, int], Answer]) -> Answer:
    """What a query says of all rows, from what it says of each part of them, each with a seed of its own."""
    parts = [ask(table, seed + i) for i, table in enumerate(read_in_parts(program, rows))]
    if len(parts) == 1:
        return parts[0]
    joined: Answer = pytree.tree_map(lambda *own: np.concatenate(own), parts[0], *parts[1:])
    return joined


def default_need(program: Program) -> Need:
    """What rows of a query must have: with a continuous latent every observed node, else any one."""
    sampled = (program.continuous or program.recognition.draws) and not exact(program)
    return "all" if sampled else "any"


def _complete_for_the_guide(program: Program, table: Table) -> None:
    """Refuse missing cells that a guide would take for zeros: it was trained on complete rows."""
    read = {parent for entry in program.guide_spec.values() for parent in entry.parents()}
    lost = (
        sorted(table.holes & read - {*program.schema.holes, *program.recognition.draws})
        if program.continuous and not exact(program)
        else []
    )
    if lost:
        raise DataError(
            f"{', '.join(map(repr, lost))} has missing values, and the guide reads it, but was trained on complete "
            "rows and does not know what a missing cell is: drop those rows or fill them in, or fit rows with "
            "missing cells"
        )


def _with_lacking_leaves(program: Program, table: Table) -> Table:
    """The table with every leaf that it lacks as missing cells."""
    spec, schema = program.spec, program.schema
    arrays = dict(table.arrays)
    for name in (*schema.roles.observed, *schema.roles.inputs):
        if name in arrays or name in program.inner:
            continue
        if name not in spec.leaves:
            raise DataError(
                f"the rows lack {name!r} (columns {listed(schema.column_names(name))}), which other nodes depend on"
            )
        width = schema.dims[name]
        if name in schema.k:
            shape = (table.n_units,) if is_scalar(spec, name, width) else (table.n_units, width)
            arrays[name] = np.full(shape, -1, dtype=np.int64)
        else:
            arrays[name] = np.full((table.n_units, width), np.nan)
    lacking = frozenset(arrays) - frozenset(table.arrays)
    return replace(table, arrays=arrays, holes=table.holes | lacking) if lacking else table


def in_blocks(program: Program, rows: Rows, copies: int = 1) -> Iterator[Rows]:
    """The rows a block at a time, so that `copies` draws of each, under every class, stay small in memory."""
    size = block_size(program, copies)
    for start in range(0, len(next(iter(rows.values()))), size):
        yield {name: value[start : start + size] for name, value in rows.items()}


def block_size(program: Program, copies: int = 1) -> int:
    """Rows a block: CELLS over the numbers that one row takes, a matrix parameter counted in full."""
    classes = math.prod(math.prod(program.generative.draws[name].sizes.levels) for name in program.enumerated)
    draws = (*program.generative.draws.values(), *program.recognition.draws.values())
    width = sum(2 * math.prod(slot.target.axes) for draw in draws for slot in draw.slots.values())
    return max(1, CELLS // (copies * (classes + width)))


@contextmanager
def seeded(program: Program, seed: int) -> Iterator[None]:
    """No gradients, Pyro in a scope of its own, and random numbers of this seed; all are put back."""
    devices = {value.device for value in program.state_dict().values() if value.is_cuda}
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def at_least_one(value: Any, what: str) -> int:
    """A count of draws or rows that a user gave.

    Raises:
        FitError: it is not a whole number from 1.

    Example:
        >>> at_least_one(0, "draws")
        Traceback (most recent call last):
        ...
        ppl_gen.errors.FitError: draws must be a whole number from 1, not 0

    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 1:
        raise FitError(f"{what} must be a whole number from 1, not {value!r}")
    return int(value)
