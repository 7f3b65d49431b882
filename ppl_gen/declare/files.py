"""Declarations from YAML files and back, every mistake with its file, line and column."""

from __future__ import annotations

import collections.abc
import re
from pathlib import Path
from typing import NoReturn

from ppl_gen.declare.declared import nearest
from ppl_gen.declare.notation import NotationError, parse_entry
from ppl_gen.declare.scope import Entry, check_name
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.yaml_text import format_spec
from ppl_gen.declare.yaml_tree import MAX_TEXT, Listing, Mapping, Scalar, Source, Tree, read_tree
from ppl_gen.errors import SpecError

SECTIONS = ("model", "guide", "columns")


def shipped_models() -> dict[str, Path]:
    """The declared models that come with the library, by name.

    Example:
        >>> "gaussian_mixture" in shipped_models()
        True

    """
    package = Path(__file__).parent.parent
    folder = package / "models"  # in an installed wheel
    if not folder.is_dir() and (package.parent / "pyproject.toml").is_file():
        folder = package.parent / "models"  # in a checkout, and in an editable install of it
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_spec(
    source: str | Path, *, trust: bool = False, nets: collections.abc.Mapping[str, object] | None = None
) -> Spec:
    r"""Read a declaration from a file, a shipped model, or a YAML text.

    Args:
        source: a path; the name of a shipped model; or the YAML itself, known by its line breaks.
        trust: whether the text may name code of its own to be run, as `Net("package.module:name", z)` does.
        nets: what to take for a `Net` in place of what it names: its label in the text → a module, or a function
            that makes one. These need no trust.

    Returns:
        The declaration, with every rule checked that needs no data.

    Raises:
        SpecError: beginning with `file:line:column: ` ("<text>" for a text).

    Example:
        >>> read_spec("gaussian_mixture").leaves
        ('x',)
        >>> read_spec("model:\n  x: Normal(2, lo=0)")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ppl_gen.errors.SpecError: <text>:2:16: Normal has no option 'lo'; did you mean 'loc'? ...

    """
    if isinstance(source, str) and "\n" in source:
        return _Reader(Source(source, "<text>"), trust, nets).spec()
    path = _found(source)
    try:
        if path.stat().st_size > 4 * MAX_TEXT:  # a character is at most four bytes
            raise SpecError(f"{path}: too long for a declaration; at most {MAX_TEXT} characters are read")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return _Reader(Source(text, str(source)), trust, nets).spec()


def write_spec(spec: Spec, path: str | Path | None = None) -> str:
    """Write a declaration as YAML, which `read_spec` reads back to an equal one.

    Args:
        spec: the declaration.
        path: the file to write; None: none.

    Returns:
        The text.

    Example:
        >>> print(write_spec(read_spec("poisson_mixture")))
        model:
          z: Categorical(2)
          x: Poisson(rate=By(z))
        <BLANKLINE>

    """
    text = format_spec(spec)
    if path is not None:
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    return text


def _found(source: str | Path) -> Path:
    if not isinstance(source, str | Path) or not str(source).strip():
        raise SpecError(
            f"a declaration is a Spec, a path, a shipped name or YAML text, not {source!r}; "
            f"shipped: {', '.join(shipped_models())}"
        )
    path = Path(source)
    if path.is_dir():
        raise SpecError(
            f"{source} is a folder; a declaration is a file in it, or the name of a shipped model"
        )
    if isinstance(source, str) and path.name == source and not path.suffix:
        shipped = shipped_models()
        if source in shipped:
            return shipped[source]
        if not path.exists():
            hint = nearest(source, shipped) or ";"
            raise SpecError(f"{source!r} is no file and no shipped model{hint} shipped: {', '.join(shipped)}")
    return path


class _Reader:
    """One source: its tree, and where each entry of each section stands in it."""

    def __init__(
        self, source: Source, trust: bool, nets: collections.abc.Mapping[str, object] | None
    ) -> None:
        self.source, self.trust, self.nets = source, trust, nets
        self.keys: dict[str, Scalar] = {}
        self.entries: dict[str, dict[str, tuple[Scalar, Tree]]] = {}

    def spec(self) -> Spec:
        top = read_tree(self.source)
        if not isinstance(top, Mapping):
            self.source.fail("a declaration begins with model:, and its entries below it", top.start)
        for key, section in top.pairs:
            self.section(key, section)
        if "model" not in self.entries:
            written = ", ".join(self.keys) or "nothing"
            self.source.fail(f"the model: section is missing; written: {written}", top.start)
        sections = {title: self.read(title) for title in ("model", "guide") if title in self.entries}
        columns = (
            {name: self.columns(name) for name in self.entries["columns"]} if "columns" in self.keys else None
        )
        try:
            return Spec(model=sections["model"], guide=sections.get("guide"), columns=columns)
        except SpecError as error:
            return self.fail(error)

    def section(self, key: Scalar, section: Tree) -> None:
        title = key.value
        if title not in SECTIONS:
            hint = nearest(title, SECTIONS) or ";"
            self.source.fail(f"{title!r} is no section{hint} sections: {', '.join(SECTIONS)}", key.start)
        if not isinstance(section, Mapping):
            start = key.start if isinstance(section, Scalar) and not section.value else section.start
            self.source.fail(f"{title}: must have entries below it, one a line, as x: ...", start)
        if section.braces and title != "columns":
            self.source.fail(
                f"{title}: must have its entries below it, one a line, not in braces", section.start
            )
        self.keys[title] = key
        self.entries[title] = {name.value: (name, entry) for name, entry in section.pairs}

    def read(self, title: str) -> dict[str, Entry]:
        found = {}
        for name, (key, tree) in self.entries[title].items():
            try:
                check_name(name, title)
            except SpecError as error:
                self.source.fail(str(error), key.start, section=title, node=name)
            if not isinstance(tree, Scalar):
                what = "a list" if isinstance(tree, Listing) else "a map"
                self.source.fail(
                    f"{name!r} must be a node or a term in one text, got {what}",
                    tree.start,
                    section=title,
                    node=name,
                )
            found[name] = self.entry(title, name, key, tree)
        return found

    def entry(self, title: str, name: str, key: Scalar, tree: Scalar) -> Entry:
        if not tree.value.strip():
            self.source.fail(f"{name!r} has nothing written after it", key.start, section=title, node=name)
        text, start = self.written(tree)
        try:
            return parse_entry(text, trust=self.trust, nets=self.nets)
        except NotationError as error:
            offset = tree.start
            if start is not None:
                lines = text.split("\n")
                offset = start + sum(len(line) + 1 for line in lines[: error.line - 1]) + error.column - 1
            return self.source.fail(str(error), offset, section=title, node=name, word=error.word)

    def written(self, tree: Scalar) -> tuple[str, int | None]:
        """A scalar's text, and where its first character stands; None where escapes have moved the rest."""
        raw = self.source.text[tree.start : tree.end]
        if tree.style is None:
            return raw, tree.start
        if tree.style in "|>":
            body = raw.find("\n") + 1
            return raw[body:], tree.start + body
        inner = raw[1:-1]
        moved = "\\" in inner if tree.style == '"' else "''" in inner
        return (tree.value, None) if moved else (inner, tree.start + 1)

    def columns(self, name: str) -> tuple[str, ...]:
        _, tree = self.entries["columns"][name]
        items = tree.items if isinstance(tree, Listing) else (tree,)
        found = []
        for item in items:
            if not isinstance(item, Scalar) or not item.value:
                message = f"the columns of {name!r} must be a column's name or a list of them"
                self.source.fail(message, item.start, section="columns", node=name)
            found.append(item.value)
        return tuple(found)

    def fail(self, error: SpecError) -> NoReturn:
        """A mistake told by the whole: at the word in the entry it names, else at the entry or section."""
        section, node, word = error.section, error.node, error.word
        offset = 0
        if section in self.keys:
            offset = self.keys[section].start
        if section in self.entries and node in self.entries[section]:
            key, tree = self.entries[section][node]
            found = None
            if word and isinstance(tree, Scalar | Listing):
                whole_word = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
                found = whole_word.search(self.source.text, tree.start, tree.end)
            offset = found.start() if found else key.start if word == node else tree.start
        self.source.fail(str(error), offset, section=section, node=node, word=word)
