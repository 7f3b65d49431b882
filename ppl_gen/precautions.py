"""What is looked at before a fit begins, and what its user is warned of."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
import torch

from ppl_gen.data.table import Table
from ppl_gen.errors import DataError, FitError
from ppl_gen.infer.algorithms import SVI, Algorithm
from ppl_gen.program.program import Program

LARGEST_SQUARED = 1e150  # of numbers whose squares can still be added up


def check_arguments(seed: Any, dtype: Any, device: Any) -> None:
    """Find out whether a fit's seed, precision and device can be used.

    Raises:
        FitError: one of them cannot.

    """
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**63:
        raise FitError(f"seed must be a whole number from 0, not {seed!r}")
    if dtype not in (None, torch.float32, torch.float64):
        raise FitError(f"dtype must be torch.float32 or torch.float64, not {dtype!r}")
    try:
        torch.zeros(1, device=device).add(1).item()
    except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
        raise FitError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def enough_rows(program: Program, table: Table) -> None:
    """Refuse fewer rows than a latent has classes, as a DataError."""
    for name in program.enumerated:
        classes = program.generative.draws[name].sizes.k or 2
        if max(table.n_units, table.total) < classes:
            raise DataError(
                f"{table.n_units} row(s) cannot tell {classes} classes of '{name}' apart; "
                f"give at least {classes} rows, or fewer classes"
            )


def coarse_columns(program: Program, table: Table, algorithm: Algorithm) -> list[str]:
    """Warnings of real columns whose values float32, or SVI's steps, cannot resolve."""
    found, schema = [], table.schema
    stepwise = isinstance(algorithm, SVI)
    for name in schema.roles.observed:
        if program.spec.nodes[name].support != "real":
            continue
        moments = zip(schema.columns[name], schema.centre[name], schema.spread[name], strict=True)
        for position, (column, mean, sd) in enumerate(moments):
            cells = table.arrays[name][:, position]
            if abs(mean) > 1e5 * sd and np.array_equal(cells, cells.astype(np.float32), equal_nan=True):
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) seems to have been stored in "
                    "float32, which keeps next to none of its differences: subtract the mean before storing it"
                )
            elif program.dtype == torch.float32 and abs(mean) > 1e4 * sd:
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) loses digits in float32: "
                    "subtract its mean, or use dtype=torch.float64"
                )
            elif stepwise and not (abs(mean) <= 1e3 * max(sd, 1.0) and 1e-4 <= sd <= 1e2):
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) is far from unit scale, and SVI "
                    "steps by the learning rate whatever the units: centre and scale it"
                )
    return found


def beyond_squares(table: Table) -> list[str]:
    """Warnings of columns whose squares are beyond what float64 holds, under a scale that is not theirs."""
    found, schema = [], table.schema
    for name in schema.roles.observed:
        columns = schema.columns.get(name, ())
        moments = zip(columns, schema.centre.get(name, ()), schema.spread.get(name, ()), strict=False)
        for column, mean, sd in moments:
            if max(abs(mean), sd) > LARGEST_SQUARED:
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) has squares beyond the range of "
                    "floating-point numbers: divide it by a power of ten"
                )
    return found


def warn(*messages: str) -> None:
    """Warn whoever called the function that calls this, through `in_turn`."""
    for message in messages:
        warnings.warn(message, stacklevel=4)
