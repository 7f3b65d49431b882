"""When a run is to be kept on disk, and nested dictionaries of tensors and numbers as JSON beside tensors."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ppl_gen.errors import FitError

Snapshot = dict[str, Any]
MINUTES = 5.0


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often an SVI run is kept on disk; `resume(path)` goes on from there to the same bits.

    A checkpoint holds parameters, the optimiser's memory, the state of the noise, the place in the epoch's order
    and the history. It is written beside the others, flushed and renamed, so that a crash at any moment leaves
    the one before; the last two are kept. A disk that is full does not end the run: the notes say it.

    Args:
        path: a folder for the checkpoints of this one run, made with its parents.
        every_epochs: one after each so many epochs.
        every_minutes: one after each so many minutes, within an epoch too. Default 5, where nothing is said.
        replace: whether the checkpoints of an earlier run may be there; they are deleted.
        data: the path of the rows, for `resume` to read them again; None: the path that `fit` was given, if it was.
        weights: the name of their column of weights, likewise.

    Raises FitError for a value outside its range. One is written at the end as well, and on Ctrl-C.

    Example:
        >>> Checkpoints("runs/vae", every_epochs=10).every_minutes
        >>> Checkpoints("runs/vae").every_minutes
        5.0

    """

    path: str | Path
    every_epochs: int | None = None
    every_minutes: float | None = None
    replace: bool = False
    data: str | Path | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        epochs, minutes = self.every_epochs, self.every_minutes
        if not isinstance(self.path, str | Path) or not str(self.path):
            raise FitError(f"Checkpoints: path must name a folder, not {self.path!r}")
        for name in ("data", "weights"):
            if not isinstance(getattr(self, name), str | Path | None):
                raise FitError(f"Checkpoints: {name} must be text or None, not {getattr(self, name)!r}")
        if epochs is None and minutes is None:
            object.__setattr__(self, "every_minutes", MINUTES)
        if epochs is not None and (isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1):
            raise FitError(f"Checkpoints: every_epochs must be a whole number from 1, not {epochs!r}")
        number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
        if minutes is not None and not (number and 0 < minutes < math.inf):
            raise FitError(f"Checkpoints: every_minutes must be a positive number, not {minutes!r}")


class Keeper(Protocol):
    """Whatever stores snapshots."""

    @property
    def checkpoints(self) -> Checkpoints:
        """When it wants them."""

    def keep(self, snapshot: Snapshot) -> str | None:
        """Store one; what went wrong, or None."""

    def release(self) -> None:
        """No more will come."""


class Pace:
    """When the next snapshot is due."""

    def __init__(self, checkpoints: Checkpoints, epochs: int) -> None:
        self.every_epochs = checkpoints.every_epochs or math.inf
        self.seconds = 60 * (checkpoints.every_minutes or math.inf)
        self.written(epochs)

    def written(self, epochs: int) -> None:
        """One has been stored after so many epochs."""
        self.epochs, self.since = epochs, time.monotonic()

    def due(self, epochs: int) -> bool:
        """Whether one is due after so many epochs."""
        return epochs - self.epochs >= self.every_epochs or time.monotonic() - self.since >= self.seconds


def packed(tree: Any, tensors: dict[str, Tensor], place: str) -> Any:
    """A tree as JSON can hold it, its tensors put aside under their places; `unpacked` is the inverse.

    Trees are of dictionaries, lists, tuples, tensors, numbers, text, True, False and None.

    Raises:
        FitError: something else is in it.

    Example:
        >>> tensors = {}
        >>> packed({"step": 3, "betas": (0.9, float("inf"))}, tensors, "adam")
        {'dict': [['step', 3], ['betas', {'tuple': [0.9, {'float': 'inf'}]}]]}

    """
    if isinstance(tree, Tensor):
        tensors[place] = tree.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": place}
    if isinstance(tree, Mapping):
        return {"dict": [[key, packed(own, tensors, f"{place}/{key}")] for key, own in tree.items()]}
    if isinstance(tree, list | tuple):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [packed(own, tensors, f"{place}/{i}") for i, own in enumerate(tree)]}
    if isinstance(tree, float) and not math.isfinite(tree):
        return {"float": repr(tree)}
    if tree is None or isinstance(tree, str | int | float):
        return tree
    raise FitError(f"{place}: a {type(tree).__name__} cannot be stored in a checkpoint")


def unpacked(stored: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `packed` took apart."""
    if not isinstance(stored, dict):
        return stored
    [(kind, own)] = stored.items()
    if kind == "tensor":
        return tensors[own]
    if kind == "dict":
        return {key: unpacked(value, tensors) for key, value in own}
    if kind == "float":
        return float(own)
    values = [unpacked(value, tensors) for value in own]
    return tuple(values) if kind == "tuple" else values
