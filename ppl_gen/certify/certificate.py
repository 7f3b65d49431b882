"""What a certificate is: named checks, each with a verdict, a number, its limit and plain words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TABLE_WIDTH = 110


@dataclass(frozen=True)
class Line:
    """One check: a value held against its limit.

    Args:
        name: what was checked, e.g. "objective".
        ok: True or False where there is a verdict; None where the line only informs.
        value: the number found; NaN where there is none.
        limit: the number it was held against; None where nothing limits it.
        text: what the number means, in plain words.

    Example:
        >>> Line("gap", True, 0.0, 1e-9, "zero, as EM's exact posterior must give").verdict
        'ok'

    """

    name: str
    ok: bool | None
    value: float
    limit: float | None
    text: str

    @property
    def verdict(self) -> str:
        """`ok`, `FAILED`, or `-` for a line that only informs."""
        return "-" if self.ok is None else "ok" if self.ok else "FAILED"


@dataclass(frozen=True)
class Certificate:
    """The checks of one fit, in the order they were made.

    Args:
        lines: the checks; `ok` holds when none of them failed.

    Example:
        >>> certificate = Certificate((Line("gap", True, 0.0, 1e-9, "zero"),))
        >>> certificate.ok
        True
        >>> print(certificate)
        check  verdict  value  limit  meaning
        gap    ok           0  1e-09  zero
        >>> Certificate.from_dict(certificate.to_dict()) == certificate
        True

    """

    lines: tuple[Line, ...]

    @property
    def ok(self) -> bool:
        """Whether no line failed; a line that only informs cannot fail."""
        return all(line.ok is not False for line in self.lines)

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the lines that failed.

        Example:
            >>> Certificate((Line("gap", False, -3.0, 0.1, "below zero"),)).failed
            ('gap',)

        """
        return tuple(line.name for line in self.lines if line.ok is False)

    def __getitem__(self, name: str) -> Line:
        """The line of that name.

        Raises:
            KeyError: no line has it; the message names those there are.

        """
        for line in self.lines:
            if line.name == name:
                return line
        raise KeyError(f"no line {name!r}; there are: {', '.join(line.name for line in self.lines)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that strict JSON can hold: a value that is not finite is kept as text."""
        return {
            "lines": [
                {
                    "name": line.name,
                    "ok": line.ok,
                    "value": _to_json(line.value),
                    "limit": None if line.limit is None else _to_json(line.limit),
                    "text": line.text,
                }
                for line in self.lines
            ]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Certificate:
        """The certificate that `to_dict` wrote."""
        return cls(
            tuple(
                Line(
                    name=str(line["name"]),
                    ok=None if line["ok"] is None else bool(line["ok"]),
                    value=float(line["value"]),
                    limit=None if line["limit"] is None else float(line["limit"]),
                    text=str(line["text"]),
                )
                for line in data["lines"]
            )
        )

    def __str__(self) -> str:
        """An aligned table for a terminal, its last column wrapped."""
        rows = [("check", "verdict", "value", "limit", "meaning")]
        rows += [
            (line.name, line.verdict, _shown(line.value), _shown(line.limit), line.text)
            for line in self.lines
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(text for row in rows for text in _table_row(row, widths))


def _to_json(value: float) -> float | str:
    return float(value) if math.isfinite(value) else repr(float(value))


def _shown(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"


def _table_row(row: tuple[str, ...], widths: list[int]) -> list[str]:
    name, verdict, value, limit, text = row
    head = f"{name:<{widths[0]}}  {verdict:<{widths[1]}}  {value:>{widths[2]}}  {limit:>{widths[3]}}  "
    wrapped = textwrap.wrap(text, max(30, TABLE_WIDTH - len(head))) or [""]
    later = " " * len(head)
    return [(head if not index else later) + part for index, part in enumerate(wrapped)]
