"""A declaration as YAML text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ppl_gen.declare.node import Node
from ppl_gen.declare.notation import format_entry
from ppl_gen.declare.terms import Term


def quoted(text: str) -> str:
    """A YAML scalar for any text: plain where that is safe, else in double quotes.

    Example:
        >>> print(quoted("waiting"), quoted("a: b"))
        waiting "a: b"

    """
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", text):
        return text
    inner = "".join(_escaped(character) for character in text)
    return f'"{inner}"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08X}"


def format_spec(model: Any) -> str:
    """A `Spec` as YAML text; `read_spec` reads it back to an equal one."""
    lines = []
    for title in ("model", "guide"):
        entries: Mapping[str, Node | Term] | None = getattr(model, title)
        if entries is not None:
            lines.append(f"{title}:")
            lines.extend(f"  {name}: {_plain(format_entry(entry))}" for name, entry in entries.items())
    if model.columns is not None:
        lines.append("columns:")
        for name, columns in model.columns.items():
            lines.append(f"  {name}: [{', '.join(quoted(column) for column in columns)}]")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """An entry's text as a YAML scalar: a list in front would begin a YAML list."""
    return f"'{text}'" if text.startswith("[") else text
