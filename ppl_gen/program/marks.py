"""Marks of the cells that are seen, beside the rows themselves: "x.seen" beside "x"."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IMPOSSIBLE = -1e30  # in place of log 0: −∞ would make responsibilities NaN


def seen_key(name: str) -> str:
    """Where a mapping of rows keeps the marks of a node's seen cells."""
    return f"{name}.seen"


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
