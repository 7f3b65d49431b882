"""Missing cells: where they may be (rules 5 and 18), and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppl_gen.data.checks import at, missing, where
from ppl_gen.declare.guide_rules import MAX_TABLE
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError

Mask = NDArray[np.bool_]


def lacking(array: NDArray[Any]) -> Mask | None:
    """Which cells of a node are missing, (N, width): NaN, or the code -1; None where none is.

    Example:
        >>> import numpy as np
        >>> lacking(np.array([0, -1])).tolist(), lacking(np.array([[0.5]]))
        ([[False], [True]], None)

    """
    if array.dtype.kind == "i":
        return None if array.min() >= 0 else (array < 0).reshape(len(array), -1)
    with np.errstate(invalid="ignore"):
        return np.isnan(array) if np.isnan(array.min()) else None  # min passes a NaN on


def can_be_summed(spec: Spec, name: str, k: int | None) -> bool:
    """Whether a node that others depend on has few enough values to be summed over where it is missing."""
    node = spec.nodes[name]
    if not node.discrete or node.support == "count":
        return False
    return (node.width or 1) * math.log(k or 2) <= math.log(MAX_TABLE) + 1e-9


def allowed(spec: Spec, name: str, columns: Sequence[str], lost: Mask, k: int | None) -> None:
    """Refuse missing cells where they can be neither integrated out nor summed over.

    Args:
        spec: the declaration.
        name: the node or Input.
        columns: its columns.
        lost: which of its cells are missing, (N, width).
        k: its number of categories, if it is a category.

    Raises:
        DataError: it is an Input, or a node that others depend on with values that cannot be summed over, or
            such a node has some cells of a row and lacks others.

    """
    if name in spec.leaves:
        return
    if name in spec.inputs:
        why = "an Input is given and not modelled"
    elif not can_be_summed(spec, name, k):
        why = f"other nodes depend on {name!r} and its values cannot be summed over"
    else:
        uneven = lost.any(axis=1) & ~lost.all(axis=1)
        if uneven.any():
            raise DataError(
                f"{name!r} has some of its {lost.shape[1]} cells {at(int(uneven.argmax()))} and lacks others; "
                "other nodes depend on it, so that a row has all or none: blank the rest of that row"
            )
        return
    column = int(lost.any(axis=0).argmax())
    own = lost[:, column]
    raise missing(
        columns[column],
        name,
        count=int(own.sum()),
        row=int(own.argmax()),
        why=f"{why}, so that every row needs it: drop those rows or fill them in",
    )


def some_value(spec: Spec, name: str, columns: Sequence[str], lost: Mask, counts: Mask | None) -> None:
    """Refuse, in training data, a column without a single value.

    Args:
        spec: the declaration.
        name: the node.
        columns: its columns.
        lost: which of its cells are missing, (N, width).
        counts: which rows have a weight above 0; None: all.

    Raises:
        DataError: there is one.

    """
    empty = (lost if counts is None else lost[counts]).all(axis=0)  # (width,)
    if not empty.any():
        return
    rows = "any row" if counts is None or lost.all(axis=0).any() else "any row of weight above 0"
    latent = "" if name in spec.leaves else f", and {name!r} is latent"
    raise DataError(
        f"{where(columns[int(empty.argmax())], name)} has no value in {rows}: leave it out{latent}"
    )


def empty_rows(observed: Sequence[str], lost: Mapping[str, Mask | None]) -> list[str]:
    """A warning that counts the rows without a single observed value."""
    masks = [mask.all(axis=1) for name in observed if (mask := lost[name]) is not None]
    if not masks or len(masks) < len(observed):
        return []
    bare = np.logical_and.reduce(masks)
    count = int(bare.sum())
    if not count:
        return []
    rows = "1 row has" if count == 1 else f"{count} rows have"
    return [
        f"{rows} no observed value, the first {at(int(bare.argmax()))}: kept, but nothing is learned there"
    ]
