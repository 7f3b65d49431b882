"""The one-line text form, both ways.

The reader walks Python's syntax tree and knows calls of the words it is given, names, numbers, strings, True,
False, None, lists and `+`; nothing is evaluated. The table of words comes from the caller, so that
`SVI(epochs=20)` is read by the same reader.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ppl_gen.declare.declared import nearest
from ppl_gen.declare.networks import net_of_text
from ppl_gen.declare.nodes import NODES, RESERVED, WORDS, Node
from ppl_gen.declare.priors import PRIORS
from ppl_gen.declare.terms import TERMS, Name, Sum, Term
from ppl_gen.errors import SpecError

MAX_TEXT = 10_000
MAX_DEPTH = 50
# Normal and the like are nodes first: where a prior is expected, a node of numbers is read as the prior.
# A Net in a text names code: without trust it is refused.
ENTRY_WORDS: dict[str, Callable[..., Any]] = {**PRIORS, **NODES, **TERMS, "Net": net_of_text}


class NotationError(SpecError):
    """A text is not in the notation; `line` and `column` (from 1) say where in the text."""

    def __init__(self, message: str, *, line: int, column: int, word: str | None = None) -> None:
        super().__init__(message, word=word)
        self.line = line
        self.column = column


def parse(text: str, words: Mapping[str, Callable[..., Any]]) -> Any:
    """Read one expression of the notation.

    Args:
        text: at most 10 000 characters; line breaks count as spaces.
        words: what can be called, by name.

    Returns:
        What the outermost word makes, or a number, list, string, or `Name`.

    Raises:
        NotationError: with line and column in the text.

    Example:
        >>> parse("Normal(2, loc=By(z))", {**NODES, **TERMS})
        Normal(2, loc=By(z), scale=Free())
        >>> parse("dict(epochs=20)", {"dict": dict})
        {'epochs': 20}

    """
    return _Reader(text, words).read()


def parse_entry(text: str, *, trust: bool = False, nets: Mapping[str, object] | None = None) -> Node | Term:
    """Read one node or term.

    Args:
        text: at most 10 000 characters.
        trust: whether a `Net` may name code to be imported.
        nets: what to take for a `Net` of that label, in place of what it names.

    Raises:
        NotationError: with line and column in the text.

    Example:
        >>> parse_entry("By(z) + Linear(u)")
        By(z) + Linear(u)

    """
    word = text.split("(")[0].strip()
    if word in PRIORS and word not in NODES:
        later = "; as a node it is not supported yet" if word in RESERVED else ""
        raise NotationError(
            f"{word} is a prior, as in Free(prior={word}(...)){later}", line=1, column=1, word=word
        )
    net = partial(net_of_text, trust=trust, nets=nets)
    entry = parse(text, ENTRY_WORDS | {"Net": net})
    if not isinstance(entry, Node | Term):
        raise NotationError(f"{_cut(text)} is no node and no term, as Normal(2) or By(z)", line=1, column=1)
    return entry


def format_entry(entry: Node | Term) -> str:
    """Write one node or term; `parse_entry` reads it back to an equal one.

    Example:
        >>> format_entry(parse_entry("Poisson( rate = By(z) )"))
        'Poisson(rate=By(z))'

    """
    return str(entry)


def _cut(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


class _Reader:
    """One text, and where in it we are when something is wrong."""

    def __init__(self, text: str, words: Mapping[str, Callable[..., Any]]) -> None:
        self.text = text
        self.words = words
        self.flat = re.sub(r"[\n\r\f]", " ", text)
        self.start = len(self.flat) - len(self.flat.lstrip())

    def error(self, message: str, offset: int, word: str | None = None) -> NotationError:
        """A mistake at a character of the text."""
        before = self.text[:offset]
        line = before.count("\n") + 1
        return NotationError(message, line=line, column=offset - (before.rfind("\n") + 1) + 1, word=word)

    def at(self, node: ast.AST) -> int:
        """Offset in characters; the tree counts UTF-8 bytes on its one line."""
        body = self.flat[self.start :].encode()
        return self.start + len(body[: getattr(node, "col_offset", 0)].decode())

    def read(self) -> Any:
        if len(self.text) > MAX_TEXT:
            raise self.error(f"the text has {len(self.text)} characters; at most {MAX_TEXT} are read", 0)
        if not self.flat.strip():
            raise self.error("nothing is written here", 0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in strings; we read none that Python warns of
                tree = ast.parse(self.flat[self.start :], mode="eval")
        except (RecursionError, MemoryError):
            raise self.error("the text is nested too deeply", self.start) from None
        except SyntaxError as error:
            column = max((error.offset or 1) - 1, 0) if error.lineno == 1 else 0
            offset = min(self.start + column, max(len(self.text) - 1, 0))
            raise self.error(f"not in the notation: {error.msg}", offset) from None
        except ValueError as error:
            raise self.error(f"not in the notation: {error}", self.start) from None
        return self.value(tree.body, 0)

    def value(self, node: ast.expr, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.error("the text is nested too deeply", self.at(node))
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if (
                not isinstance(number, bool)
            ):
                return -number
            case ast.Name(id=name):
                return self.name(node, name)
            case ast.List(elts=items):
                return [self.value(item, depth + 1) for item in items]
            case ast.BinOp(op=ast.Add()):
                return self.sum(node, depth)
            case ast.Call():
                return self.call(node, depth)
        what = WHAT.get(type(node), "this")
        raise self.error(
            f"{what} is not in the notation, which knows words, names, numbers, lists and +", self.at(node)
        )

    def name(self, node: ast.Name, name: str) -> Name:
        if name in self.words or name in WORDS:
            raise self.error(f"{name!r} is a word, not a name; write {name}(...)", self.at(node), name)
        return Name(name)

    def sum(self, node: ast.expr, depth: int) -> Sum:
        parts: list[ast.expr] = []
        while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):  # a + b + c leans to the left
            parts.append(node.right)
            node = node.left
        parts.append(node)
        values = [(part, self.value(part, depth + 1)) for part in reversed(parts)]
        try:
            return Sum(*(value for _, value in values))
        except SpecError as error:
            raise self.error(str(error), self.at(values[0][0])) from None

    def call(self, node: ast.Call, depth: int) -> Any:
        if not isinstance(node.func, ast.Name):
            raise self.error("only a word can stand before a parenthesis", self.at(node))
        word = node.func.id
        if word not in self.words:
            hint = nearest(word, self.words) or ";"
            if word in RESERVED:
                message = f"{word} is not supported yet; it is reserved for a later version"
            else:
                message = f"{word!r} is not a word here{hint} the words: {', '.join(self.words)}"
            raise self.error(message, self.at(node.func), word)
        arguments = []
        for item in node.args:
            if isinstance(item, ast.Starred):
                raise self.error("* is not in the notation", self.at(item))
            arguments.append(self.value(item, depth + 1))
        options: dict[str, Any] = {}
        places: dict[str, int] = {}
        for keyword in node.keywords:
            place = self.at(keyword)
            if keyword.arg is None:
                raise self.error("** is not in the notation", place)
            if keyword.arg in options:
                raise self.error(f"{word}'s {keyword.arg} is written twice", place, keyword.arg)
            options[keyword.arg] = self.value(keyword.value, depth + 1)
            places[keyword.arg] = place
        try:
            return self.words[word](*arguments, **options)
        except (TypeError, ValueError) as error:
            blamed = error.word if isinstance(error, SpecError) else None
            raise self.error(str(error), places.get(blamed or "", self.at(node)), blamed) from None


WHAT: dict[type[ast.expr], str] = {
    ast.Attribute: "a dot",
    ast.Subscript: "a subscript",
    ast.BinOp: "an operator other than +",
    ast.UnaryOp: "a sign before anything but a number",
    ast.Compare: "a comparison",
    ast.BoolOp: "and/or",
    ast.Lambda: "a function",
    ast.IfExp: "a condition",
    ast.Tuple: "a comma outside brackets",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.ListComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "an f-string",
    ast.Constant: "this constant",
}
