"""YAML as text with places: maps, lists and scalars, every scalar as it is written.

Only the event stream of the YAML reader is used: nothing is constructed, so no tag runs code, no alias is
expanded, and `no`, `1e-3` and `2024-01-01` stay what the person typed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from ppl_gen.errors import SpecError

MAX_TEXT = 200_000
# Sections, entries, lists of columns, and what stands in them: deeper nesting has no meaning here.
MAX_DEPTH = 4


@dataclass(frozen=True)
class Scalar:
    """A text: its value, and where it stands in the source, quotes and all."""

    value: str
    start: int
    end: int
    style: str | None


@dataclass(frozen=True)
class Listing:
    """A list, and where it begins and ends."""

    items: tuple[Tree, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Mapping:
    """A map from texts, in order; `braces` says that it was written inside { }."""

    pairs: tuple[tuple[Scalar, Tree], ...]
    start: int
    braces: bool


Tree: TypeAlias = Scalar | Listing | Mapping


class Source:
    """A text with a name, which turns a place in it into `name:line:column`."""

    def __init__(self, text: str, label: str) -> None:
        self.text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        self.label = label

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1, of a character."""
        before = self.text[:offset]
        return before.count("\n") + 1, offset - before.rfind("\n")

    def fail(self, message: str, offset: int = 0, **where: str | None) -> NoReturn:
        """Raise a `SpecError` that begins with the place."""
        line, column = self.place(offset)
        raise SpecError(f"{self.label}:{line}:{column}: {message}", **where) from None


def read_tree(source: Source) -> Tree:
    """Read one YAML document.

    Raises:
        SpecError: what is no YAML, more than one document, tags, anchors, aliases, keys written twice, and
            texts too long or too deep.

    """
    if len(source.text) > MAX_TEXT:
        source.fail(f"the text has {len(source.text)} characters; at most {MAX_TEXT} are read")
    try:
        return _Composer(source).document()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return source.fail(f"not YAML: {error.problem}", mark.index if mark else 0)
    except YAMLError as error:
        return source.fail(f"not YAML: {str(error).splitlines()[0]}", getattr(error, "position", 0) or 0)


class _Composer:
    """Builds the tree from events, and refuses what the language has no use for as soon as it is met."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.events: Iterator[Any] = YAML(typ="safe", pure=True).parse(source.text)

    def document(self) -> Tree:
        found: Tree | None = None
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                if found is not None:
                    self.source.fail(
                        "a second document begins here; a file holds one", event.start_mark.index
                    )
                found = self.tree(next(self.events), 0)
        return (
            found
            if found is not None
            else self.source.fail("the file is empty; it must have a model: section")
        )

    def tree(self, event: Any, depth: int) -> Tree:
        start = event.start_mark.index
        if isinstance(event, AliasEvent):
            self.source.fail("an alias (*) has no meaning here; to share a quantity, name it", start)
        if event.anchor is not None:
            self.source.fail("an anchor (&) has no meaning here; to share a quantity, name it", start)
        if event.tag is not None:
            self.source.fail("a tag (!) has no meaning here", start)
        if depth > MAX_DEPTH:
            self.source.fail("nothing in a declaration is nested this deeply", start)
        if isinstance(event, ScalarEvent):
            return Scalar(event.value, start, event.end_mark.index, event.style)
        if isinstance(event, SequenceStartEvent):
            return self.listing(start, depth)
        assert isinstance(event, MappingStartEvent)
        return self.mapping(start, depth, braces=bool(event.flow_style))

    def listing(self, start: int, depth: int) -> Listing:
        items = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.tree(event, depth + 1))
        return Listing(tuple(items), start, event.end_mark.index)

    def mapping(self, start: int, depth: int, *, braces: bool) -> Mapping:
        pairs: dict[str, tuple[Scalar, Tree]] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.tree(event, depth + 1)
            if not isinstance(key, Scalar):
                self.source.fail("a key must be a name", key.start)
            if key.value in pairs:
                first, _ = self.source.place(pairs[key.value][0].start)
                again, _ = self.source.place(key.start)
                self.source.fail(
                    f"{key.value!r} is written twice, in line {first} and in line {again}", key.start
                )
            pairs[key.value] = (key, self.tree(next(self.events), depth + 1))
        return Mapping(tuple(pairs.values()), start, braces)
