"""What a program needs to know of the data, without the rows: roles, sizes, columns, levels, moments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ppl_gen.declare.spec import Roles
from ppl_gen.errors import DataError

Level = str | int | float
"""A category as the data write it; booleans count as numbers."""


@dataclass(frozen=True)
class Schema:
    """The settled shape of a model and of the data it was met with; plain values, so it is stored as JSON.

    Args:
        roles: which nodes are observed, latent and given, each in model order.
        dims: width of every node and Input, latent ones too; 1 for a scalar Categorical.
        k: number of categories of every categorical node and categorical Input. With several columns it is
            the largest over them, and `level_counts` says how many each column has.
        columns: column names of every observed node and Input.
        levels: per column of a categorical node in the data, its sorted levels; `None` for a column whose
            cells are already the codes 0..k−1. Beside wider columns of one node, 0..m−1 are levels as others.
        centre: mean of each column of every observed or given real or count node, over the cells it has, rows
            by their weights.
        spread: standard deviation (population form, 1/N) of the same cells; 1.0 where constant.
        partial: discrete nodes that others depend on and whose values the data have in some rows only, in
            model order: partly labelled latents.
        holes: leaves with missing cells, in model order: a guide that reads one is told which cells it sees.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.nodes import Categorical
        >>> from ppl_gen.declare.spec import Spec
        >>> spec = Spec(model={"c": Categorical()})
        >>> schema = read_table({"c": ["yes", "no", "yes"]}, spec).schema
        >>> schema.k, schema.levels
        ({'c': 2}, {'c': (('no', 'yes'),)})
        >>> schema.decode("c", [0, 1])
        array(['no', 'yes'], dtype=object)
        >>> Schema.from_dict(schema.to_dict()) == schema
        True

    """

    roles: Roles
    dims: dict[str, int]
    k: dict[str, int] = field(default_factory=dict)
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    levels: dict[str, tuple[tuple[Level, ...] | None, ...]] = field(default_factory=dict)
    centre: dict[str, tuple[float, ...]] = field(default_factory=dict)
    spread: dict[str, tuple[float, ...]] = field(default_factory=dict)
    partial: tuple[str, ...] = ()
    holes: tuple[str, ...] = ()

    def column_names(self, name: str) -> tuple[str, ...]:
        """The column names of a node: those of the data, else `x`, or `x[0]`, `x[1]`, … for a vector.

        Raises:
            DataError: no node has this name.

        Example:
            >>> Schema(Roles(("x",), ("z",), ()), {"z": 1, "x": 2}).column_names("x")
            ('x[0]', 'x[1]')

        """
        self._known(name)
        return self.columns.get(name) or default_columns(name, self.dims[name])

    def level_counts(self, name: str) -> tuple[int, ...]:
        """How many categories each column of a categorical node has; at most `k[name]`.

        One column has k, whether or not the data showed them all. Of several columns, each has the levels it
        showed, since k is the largest over them.

        Raises:
            DataError: no node has this name, or it is not categorical.

        """
        own = self._levels(name)
        if len(own) == 1 or name in self.partial:
            return (self.k[name],) * len(own)
        return tuple(self.k[name] if levels is None else len(levels) for levels in own)

    def decode(self, name: str, codes: ArrayLike) -> NDArray[Any]:
        """The levels that codes stand for, as the data wrote them.

        Args:
            name: a categorical node or Input.
            codes: integers, any shape for one column; else shape (…, dim).

        Returns:
            An array of the same shape. A code that has no level (a declared k larger than the number of
            levels the data showed) stands for itself, as "class 2" where a level is called 2.

        Raises:
            DataError: the node is unknown or not categorical, or a code is outside 0..k−1.

        """
        levels = self._levels(name)
        found = np.asarray(codes)
        if found.size and (found.dtype.kind not in "iuf" or np.any(found != np.floor(found))):
            raise DataError(f"the codes of {name!r} are not whole numbers")
        found = found.astype(np.int64)
        if found.size and (found.min() < 0 or found.max() >= self.k[name]):
            raise DataError(
                f"the codes of {name!r} must be 0..{self.k[name] - 1}; found {found.min()}..{found.max()}"
            )
        if len(levels) == 1:
            return _names(found, levels[0])
        if found.shape[-1:] != (len(levels),):
            raise DataError(
                f"the codes of {name!r} need {len(levels)} columns on their last axis, shape {found.shape}"
            )
        parts = [_names(found[..., j], own) for j, own in enumerate(levels)]
        if len({part.dtype.kind for part in parts}) > 1:
            parts = [part.astype(object) for part in parts]
        return np.stack(parts, axis=-1)

    def to_dict(self) -> dict[str, Any]:
        """The schema as dictionaries, lists, strings and numbers, ready for `json.dumps`."""
        roles = {part: list(getattr(self.roles, part)) for part in ("observed", "latent", "inputs")}
        return {
            "roles": roles,
            "dims": dict(self.dims),
            "k": dict(self.k),
            "columns": {name: list(own) for name, own in self.columns.items()},
            "levels": {
                name: [None if own is None else list(own) for own in per] for name, per in self.levels.items()
            },
            "centre": {name: list(own) for name, own in self.centre.items()},
            "spread": {name: list(own) for name, own in self.spread.items()},
            "partial": list(self.partial),
            "holes": list(self.holes),
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Schema:
        """The inverse of `to_dict`.

        Raises:
            DataError: an entry is missing or has the wrong form.

        """
        try:
            return cls(
                roles=Roles(**{part: tuple(own) for part, own in stored["roles"].items()}),
                dims={name: int(size) for name, size in stored["dims"].items()},
                k={name: int(size) for name, size in stored["k"].items()},
                columns={name: tuple(own) for name, own in stored["columns"].items()},
                levels={
                    name: tuple(None if own is None else tuple(own) for own in per)
                    for name, per in stored["levels"].items()
                },
                centre={name: tuple(map(float, own)) for name, own in stored["centre"].items()},
                spread={name: tuple(map(float, own)) for name, own in stored["spread"].items()},
                partial=tuple(map(str, stored.get("partial", ()))),  # files of before it do without
                holes=tuple(map(str, stored.get("holes", ()))),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"the stored schema is damaged: {type(error).__name__}: {error}") from error

    def _known(self, name: str) -> None:
        if name not in self.dims:
            raise DataError(f"no node is called {name!r}; there are {', '.join(self.dims)}")

    def _levels(self, name: str) -> tuple[tuple[Level, ...] | None, ...]:
        self._known(name)
        if name not in self.k:
            raise DataError(f"{name!r} is not categorical; these are: {', '.join(self.k) or 'none'}")
        return self.levels.get(name) or (None,) * self.dims[name]


def are_codes(levels: tuple[Level, ...] | None) -> bool:
    """Whether a column's levels are the integers 0..m−1 themselves; booleans are not.

    Example:
        >>> are_codes((0, 1)), are_codes((False, True)), are_codes((1, 2))
        (True, False, False)

    """
    return levels is not None and all(type(own) is int and own == i for i, own in enumerate(levels))


def default_columns(name: str, width: int) -> tuple[str, ...]:
    """The column names of an array: the node's own name, indexed if there are several.

    Example:
        >>> default_columns("x", 1), default_columns("x", 2)
        (('x',), ('x[0]', 'x[1]'))

    """
    return (name,) if width == 1 else tuple(f"{name}[{j}]" for j in range(width))


def _names(codes: NDArray[np.int64], levels: tuple[Level, ...] | None) -> NDArray[Any]:
    """Codes of one column → its levels."""
    if levels is None or are_codes(levels):
        return codes
    taken = {str(level) for level in levels}
    beyond = range(len(levels), int(codes.max(initial=-1)) + 1)
    names = (*levels, *(f"class {code}" if str(code) in taken else code for code in beyond))
    # NumPy's own strings would turn the levels (1, "a") into "1", "a", and drop trailing NULs.
    plain = len({isinstance(name, bool) for name in names}) == 1 and str not in map(type, names)
    table = np.array(names, dtype=None if plain else object)
    return np.asarray(table[codes], dtype=table.dtype)
