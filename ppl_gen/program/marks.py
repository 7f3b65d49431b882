"""Marks of the cells that are seen, beside the rows themselves: "x.seen" beside "x"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.program.families.missing_normal import Seen

IMPOSSIBLE = -1e30  # in place of log 0: −∞ would make responsibilities NaN


def seen_key(name: str) -> str:
    """Where a mapping of rows keeps the marks of a node's seen cells."""
    return f"{name}.seen"


def pattern_key(name: str) -> str:
    """Where a mapping of rows keeps which pattern of seen cells each row has, (N,)."""
    return f"{name}.pattern"


def patterns_key(name: str) -> str:
    """Where a mapping of rows keeps the patterns themselves, (M, D): the one entry that is not by row."""
    return f"{name}.patterns"


def seen_of(rows: Mapping[str, Tensor], name: str, *, joined: bool) -> Any:
    """The marks of a node's seen cells as its family takes them: a tensor, or `Seen` where cells are `joined`."""
    marks = rows.get(seen_key(name))
    if marks is None or not joined:
        return marks
    patterns = rows.get(patterns_key(name))
    return Seen(marks) if patterns is None else Seen(patterns, rows[pattern_key(name)].long())


def label_site(name: str) -> str:
    """The site that holds a partly known node to its labels."""
    return f"{name}.label"


def has_holes(array: NDArray[Any]) -> bool:
    """Whether a cell is missing: NaN, or −1 among categories."""
    if not array.size:
        return False
    least = array.min()  # passes a NaN on
    return bool(least < 0) if array.dtype.kind in "iu" else bool(np.isnan(least))


def agreement(value: Tensor, label: Tensor, seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where an enumerated value is the known one or nothing is known, and next to log 0 elsewhere: (…, N)."""
    wrong = (value != label) & (seen > 0)
    if wrong.ndim and label.ndim > 1:
        wrong = wrong.any(-1)
    return wrong.to(dtype) * IMPOSSIBLE
