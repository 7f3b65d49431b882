"""Rows for a user's own Pyro functions: arrays as they are, as tensors of one length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import narwhals as nw
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.data.raw import Raw, raw_entry
from ppl_gen.data.weights import checked, from_frame, from_mapping
from ppl_gen.errors import DataError
from ppl_gen.infer.ascent_step import WEIGHTS, Rows

ONLY = "x"  # what one array is called


@dataclass(frozen=True)
class OwnRows:
    """A user's rows.

    Args:
        tensors: by name, N rows each.
        weights: how often each counts, or None.

    """

    tensors: Rows
    weights: NDArray[np.float64] | None = None

    @property
    def n_units(self) -> int:
        """N."""
        return len(next(iter(self.tensors.values())))

    @property
    def total(self) -> float:
        """The sum of the weights, or N."""
        return float(self.n_units if self.weights is None else self.weights.sum())

    def weighted(self) -> Rows:
        """The tensors, with weights of mean 1 among them where there are any."""
        if self.weights is None:
            return dict(self.tensors)
        some = next((v for v in self.tensors.values() if v.is_floating_point()), torch.zeros(()))
        own = torch.tensor(self.weights * (self.n_units / self.total), dtype=some.dtype)
        return self.tensors | {WEIGHTS: own.to(next(iter(self.tensors.values())).device)}


def own_rows(
    data: Any, *, weights: Any = None, dtype: torch.dtype = torch.float32, device: Any = None
) -> OwnRows:
    """Read a user's rows.

    Args:
        data: one array or frame, which becomes "x", or a dictionary of arrays or tensors of N rows each.
        weights: how often each row counts: N numbers from 0, or the name of an entry or column of the data, which
            the functions then do not see; None: once.
        dtype: what real numbers become; whole numbers and truth values stay what they are.
        device: where the tensors go.

    Raises:
        DataError: numbers of rows differ, a cell is not finite, something holds no numbers, or nothing has the name
            of the weights.

    Example:
        >>> own_rows({"x": [[0.0, 1.0]], "label": [3]}).tensors["label"].dtype
        torch.int64

    """
    what = weights if isinstance(weights, str) else "weights"
    data, raw = _parted(data, weights)
    entries = dict(data) if isinstance(data, Mapping) else {ONLY: data}
    if not entries or not all(isinstance(name, str) and "." not in name for name in entries):
        raise DataError(
            f"rows are arrays by name, and a name is a text without dots; given are {list(entries)}"
        )
    tensors = {name: _tensor(name, value, dtype).to(device) for name, value in entries.items()}
    counts = {name: len(value) for name, value in tensors.items()}
    if len({*counts.values()}) > 1:
        raise DataError(f"the data have different numbers of rows: {counts}; each needs one for every row")
    n = next(iter(counts.values()))
    return OwnRows(tensors, None if raw is None else checked(raw, what, n))


def _parted(data: Any, weights: Any) -> tuple[Any, Raw | None]:
    """The rows without what holds their weights, and the weights."""
    if weights is None:
        return data, None
    if not isinstance(weights, str):
        return data, raw_entry("weights", weights, dim=None)
    if isinstance(data, Mapping):
        return from_mapping(data, weights)
    frame = nw.from_native(data, eager_only=True, pass_through=True)
    if not isinstance(frame, nw.DataFrame):
        raise DataError(
            f"weights={weights!r} names an entry of a dictionary or a column of a frame, and the rows are an array "
            "without names: give the weights as numbers"
        )
    rest, raw = from_frame(frame, weights)
    return rest.to_numpy(), raw


def _tensor(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise DataError(f"{name!r} holds {array.dtype} cells; give numbers or truth values")
        value = torch.from_numpy(np.array(array))
    tensor = value.detach()
    if tensor.ndim == 0 or tensor.numel() == 0:
        raise DataError(f"{name!r} has the shape {tuple(tensor.shape)}; give at least one row")
    if not tensor.is_floating_point():
        return tensor
    bad = ~torch.isfinite(tensor).reshape(len(tensor), -1).all(1)
    if bool(bad.any()):
        raise DataError(
            f"{name!r} is not finite in {int(bad.sum())} of {len(tensor)} rows, first in row "
            f"{int(bad.int().argmax())} (counted from 0): drop those rows, or fill them in and give a mask "
            "as an array of its own"
        )
    return tensor.to(dtype)
