"""What terms and nodes share: construction whose mistakes are told in the language's words, and printing.

A declared class is a frozen pydantic dataclass. pydantic holds the fields, their order and their validators;
its errors never reach the user, who is told the class, the option, and what would have been right.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from ppl_gen.errors import SpecError

C = TypeVar("C", bound=type)

# Options whose place in the grammar is kept for a later version: refused, and never offered as a choice.
NOT_YET = frozenset({"entries", "per"})
# Fields whose name in messages is the language's word for them.
SPOKEN = {"of": "parents"}


def nearest(word: str, choices: Iterable[str]) -> str:
    """Say "; did you mean ...?" where one of the choices is close to the word, else nothing.

    Example:
        >>> nearest("lo", ["dim", "loc", "scale"])
        "; did you mean 'loc'?"
        >>> nearest("weight", ["dim", "loc"])
        ''

    """
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[close[0]]}'?" if close else ""


def options(cls: type) -> list[str]:
    """The names of what can be written inside the parentheses of a node or term, in order.

    Example:
        >>> from ppl_gen.declare.nodes import Normal
        >>> options(Normal)
        ['dim', 'loc', 'scale']

    """
    return [f.name for f in dataclasses.fields(cls) if f.name not in NOT_YET]


@dataclass_transform(frozen_default=True)
def declared(cls: C) -> C:
    """Make a frozen pydantic dataclass whose constructor raises `SpecError`, and nothing else."""
    made: Any = dataclass(
        frozen=True, repr=False, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    )(cls)
    validated = made.__init__

    def construct(self: object, *args: Any, **kwargs: Any) -> None:
        try:
            validated(self, *args, **kwargs)
        except ValidationError as error:
            raise _explained(made, error) from None

    construct.__doc__ = validated.__doc__
    made.__init__ = construct
    return made  # type: ignore[no-any-return]


def _explained(cls: type, error: ValidationError) -> SpecError:
    """The first mistake pydantic found, an unknown option before all others, in the language's words."""
    found = error.errors(include_url=False, include_input=False)
    unknown = [e for e in found if e["type"] == "unexpected_keyword_argument"]
    first: Any = (unknown or found)[0]
    fields = dataclasses.fields(cls)
    place = first["loc"][0] if first["loc"] else ""
    option = fields[place].name if isinstance(place, int) and place < len(fields) else str(place)
    spoken = SPOKEN.get(option, option)
    match first["type"]:
        case "unexpected_keyword_argument":
            hint = nearest(option, options(cls)) or ";"
            message = f"{cls.__name__} has no option '{option}'{hint} its options: {_listed(cls)}"
        case "unexpected_positional_argument":
            by_position = [
                SPOKEN.get(f.name, f.name) for f in fields if not f.kw_only and f.name not in NOT_YET
            ]
            first_ones = " and ".join(by_position) or "nothing"
            message = (
                f"{cls.__name__} takes {first_ones} by position, everything else by keyword; "
                f"its options: {_listed(cls)}"
            )
        case "multiple_argument_values":
            message = f"{cls.__name__}'s {spoken}: written twice, by position and by keyword"
        case (
            "missing"
            | "missing_argument"
            | "missing_positional_only_argument"
            | "missing_keyword_only_argument"
        ):
            message = f"{cls.__name__} needs its {spoken}; its options: {_listed(cls)}"
        case "value_error" if isinstance(first["ctx"]["error"], SpecError):
            inner: SpecError = first["ctx"]["error"]
            if not option:
                return inner
            message = f"{cls.__name__}'s {spoken} {inner}"
        case _:
            message = f"{cls.__name__}'s {spoken}: {first['msg']}"
    return SpecError(message, word=option or cls.__name__)


def _listed(cls: type) -> str:
    return ", ".join(SPOKEN.get(name, name) for name in options(cls))


class Declared:
    """Base of terms and nodes: `str` and `repr` are the notation, which `parse_entry` reads back."""

    def __repr__(self) -> str:
        """The notation: defaults left out, the first arguments by position."""
        parts: list[str] = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if self._left_out(field.name, value, field.default):
                continue
            text = written(value, names=field.name in ("of", "by"))
            parts.append(f"{field.name}={text}" if field.kw_only else text)
        return f"{type(self).__name__}({', '.join(parts)})"

    def bare_name(self) -> str | None:
        """The name this is, if it is nothing but a name."""
        return None

    def _left_out(self, name: str, value: object, default: object) -> bool:
        """Whether the option is understood when it is not written."""
        del name
        return bool(value == default)


def written(value: object, *, names: bool = False) -> str:
    """One argument as text: names bare, options quoted, tuples as lists.

    Example:
        >>> written((28, 28)), written("tanh"), written(("z",), names=True), written(("z", "u"), names=True)
        ('[28, 28]', '"tanh"', 'z', '[z, u]')

    """
    if isinstance(value, str):
        return value if names else f'"{value}"'
    if isinstance(value, tuple):
        if names and len(value) == 1:
            return str(value[0])
        return f"[{', '.join(written(item, names=names) for item in value)}]"
    return repr(value)
