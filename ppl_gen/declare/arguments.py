"""What may be written as an argument of a node or term: names, sizes, choices, each with its own complaint.

The messages begin with a verb ("must be …"): the constructor puts the class and the option before them.
"""

from __future__ import annotations

import keyword
import numbers
import unicodedata
from collections.abc import Sequence
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator

from ppl_gen.declare.declared import Declared, nearest
from ppl_gen.errors import SpecError

TRANSFORMS = ("identity", "exp", "softplus", "sigmoid", "softmax")
ACTIVATIONS = ("relu", "tanh", "sigmoid", "softplus", "elu", "gelu", "silu", "leaky_relu")
MAX_SIZE = 2**31 - 1


def _text(value: object) -> object:
    """A bare name and a quoted one are the same name."""
    return value.bare_name() if isinstance(value, Declared) else value


def identifier(value: object) -> str:
    """A name as it can be declared: a Python identifier, not a keyword, in Unicode's composed form."""
    text = _text(value)
    if not isinstance(text, str):
        raise SpecError(f"must be a name, got {shown(text)}")
    if not text.isidentifier() or keyword.iskeyword(text):
        raise SpecError(f"must be a Python identifier and no keyword, got {text!r}", word=text)
    composed = unicodedata.normalize("NFKC", text)
    if composed != text:  # Python's parser composes the names it reads, so the two would never meet
        raise SpecError(f"must be written in Unicode's composed form, {composed!r}", word=text)
    return text


def parents(value: object) -> tuple[str, ...]:
    """One name or a list of different names."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    if not items:
        raise SpecError("must be a name or a list of names, got an empty list")
    for item in items:
        if not isinstance(_text(item), str):
            aside = "; give it a line and a name of its own" if isinstance(item, Declared) else ""
            raise SpecError(f"must be a name or a list of names, got {shown(item)}{aside}")
    found = tuple(identifier(item) for item in items)
    for i, name in enumerate(found):
        if name in found[:i]:
            raise SpecError(f"must be different names, got {name!r} twice", word=name)
    return found


def categories(value: object) -> tuple[str, ...]:
    """As `parents`, or nothing."""
    return () if value is None or value == () or value == [] else parents(value)


def whole(value: object, *, least: int = 1) -> int:
    """A size: a whole number that a machine can hold; NumPy's integers count as such."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise SpecError(f"must be a whole number, got {shown(value)}")
    if not least <= int(value) <= MAX_SIZE:
        raise SpecError(f"must be a whole number from {least} to {MAX_SIZE}, got {shown(value)}")
    return int(value)


def size(value: object) -> int | tuple[int, ...] | None:
    """A size, a list of sizes (image-shaped), or None: left to the data."""
    if value is None or not isinstance(value, list | tuple):
        return None if value is None else whole(value)
    if not value:
        raise SpecError("must be a size or a list of sizes, got an empty list")
    return tuple(whole(item) for item in value)


def levels(value: object) -> int | None:
    """A number of categories, or None: left to the data."""
    return None if value is None else whole(value)


def hidden(value: object) -> tuple[int, ...]:
    """The sizes of hidden layers, at least one."""
    if not isinstance(value, list | tuple) or not value:
        raise SpecError(f"must be a list of at least one hidden size, as in [256], got {shown(value)}")
    return tuple(whole(item) for item in value)


def one_of(value: object, choices: Sequence[str]) -> str:
    """A word out of a closed set, quoted or bare."""
    text = _text(value)
    if text not in choices:
        hint = nearest(text, choices) if isinstance(text, str) else ""
        raise SpecError(f"must be one of {', '.join(choices)}, got {shown(text)}{hint}")
    return str(text)


def transform(value: object) -> str | None:
    """The name of a transform, or None: the one that belongs to the parameter's constraint."""
    return None if value is None else one_of(value, TRANSFORMS)


def activation(value: object) -> str:
    """The name of what stands between the layers."""
    return one_of(value, ACTIVATIONS)


def flag(value: object) -> bool:
    """True or False, and nothing that merely resembles them."""
    if not isinstance(value, bool):
        raise SpecError(f"must be True or False, got {shown(value)}")
    return value


def not_yet(value: object) -> None:
    """Refuse an option whose place is kept for a later version."""
    if value is not None:
        raise SpecError("is not supported yet; it is reserved for a later version")


def shown(value: object) -> str:
    """A value in a message, cut where it would fill the screen."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a number too long to print"
    return text if len(text) <= 80 else f"{text[:77]}..."


Size: TypeAlias = Annotated[int | tuple[int, ...] | None, BeforeValidator(size)]
Levels: TypeAlias = Annotated[int | None, BeforeValidator(levels)]
Parents: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(parents)]
Categories: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(categories)]
Hidden: TypeAlias = Annotated[tuple[int, ...], BeforeValidator(hidden)]
Transform: TypeAlias = Annotated[str | None, BeforeValidator(transform)]
Activation: TypeAlias = Annotated[str, BeforeValidator(activation)]
Flag: TypeAlias = Annotated[bool, BeforeValidator(flag)]
NotYet: TypeAlias = Annotated[None, BeforeValidator(not_yet)]
