"""The candidates of a grid: every combination of values, each a declaration of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ppl_gen.declare.files import read_spec
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import SpecError

SpecLike = Spec | str | Path
MODEL = "model"  # the setting that tells whole declarations apart


@dataclass(frozen=True)
class Candidate:
    """One declaration, and what tells it from the others.

    Args:
        settings: path → the value it has here: a whole number, or the text of anything else.
        spec: the declaration; None where the values do not make one.
        problem: why not.

    """

    settings: dict[str, Any]
    spec: Spec | None
    problem: SpecError | None = None

    def __str__(self) -> str:
        return ", ".join(f"{path}={value}" for path, value in self.settings.items()) or "as declared"


def candidates(
    spec: SpecLike | Sequence[SpecLike] | Mapping[str, SpecLike], grid: Mapping[str, Iterable[Any]] | None
) -> tuple[Candidate, ...]:
    """Every declaration with every combination of the grid's values, the last path turning fastest.

    Values that make no declaration (a size of 0, a name that is not there) are candidates too: they carry the
    SpecError, for a grid may well have corners that mean nothing.

    Raises:
        SpecError: the grid has no values, or two declarations have one name.

    Example:
        >>> from ppl_gen.declare.phrasebook import gaussian_mixture
        >>> for one in candidates(gaussian_mixture(1), {"z.k": [1, 2], "x.cov": ["Free()", 0]}):
        ...     print(one, "|", "sound" if one.problem is None else one.problem)
        z.k=1, x.cov=Free() | sound
        z.k=1, x.cov=0 | MultivariateNormal's cov must be positive, got 0
        z.k=2, x.cov=Free() | sound
        z.k=2, x.cov=0 | MultivariateNormal's cov must be positive, got 0

    """
    declared, values = _declarations(spec), _values(grid)
    if not declared:
        raise SpecError("there is no declaration to choose from")
    found = []
    for name, base in declared.items():
        for combination in product(*values.values()):
            chosen = dict(zip(values, combination, strict=True))
            shown = {path: _shown(value) for path, value in chosen.items()}
            found.append(_candidate(base, chosen, ({MODEL: name} if len(declared) > 1 else {}) | shown))
    return tuple(found)


def _candidate(base: Spec, chosen: Mapping[str, Any], settings: dict[str, Any]) -> Candidate:
    spec = base
    try:
        for path, value in chosen.items():
            spec = spec.replace(path, value)
    except SpecError as error:
        return Candidate(settings, None, error)
    return Candidate(settings, spec)


def _declarations(spec: Any) -> dict[str, Spec]:
    """Name → declaration; those of a list are told apart by the entries in which they differ."""
    if isinstance(spec, Mapping):
        return {str(name): _read(own) for name, own in spec.items()}
    if isinstance(spec, Spec | str | Path):
        return {"": _read(spec)}
    listed = [_read(own) for own in spec]
    named = {_difference(own, listed): own for own in listed}
    if len(named) < len(listed):
        raise SpecError("two of the declarations are the same; a dictionary gives them names of their own")
    return named


def _read(spec: Any) -> Spec:
    return spec if isinstance(spec, Spec) else read_spec(spec)


def _difference(spec: Spec, others: Sequence[Spec]) -> str:
    """The entries of a declaration that not every other one has."""
    own = [
        f"{name}: {entry}"
        for name, entry in spec.model.items()
        if any(other.model.get(name) != entry for other in others)
    ]
    return "; ".join(own)


def _values(grid: Any) -> dict[str, list[Any]]:
    if grid is None:
        return {}
    if not isinstance(grid, Mapping):
        raise SpecError(f'grid must map paths to values, as {{"z.k": range(1, 9)}}, not {grid!r}')
    found = {}
    for path, given in grid.items():
        if isinstance(given, str) or not isinstance(given, Iterable):
            raise SpecError(f"grid: {path!r} needs a list of values, not {given!r}")
        values = [value.item() if isinstance(value, np.generic) else value for value in given]
        shown = [_shown(value) for value in values]
        if not values:
            raise SpecError(f"grid: {path!r} has no value")
        if twice := [value for i, value in enumerate(shown) if value in shown[:i]]:
            raise SpecError(f"grid: {path!r} has {twice[0]} twice")
        found[str(path)] = values
    return found


def _shown(value: Any) -> Any:
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)
