"""Who refers to whom: names, references, cycles, and what a name may stand for where it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from ppl_gen.declare.arguments import identifier
from ppl_gen.declare.declared import nearest
from ppl_gen.declare.images import check_convolution, image_of
from ppl_gen.declare.nodes import WORDS, Input, Node
from ppl_gen.declare.terms import MLP, By, Conv, Function, Name, Sum, Term
from ppl_gen.errors import SpecError

Entry: TypeAlias = Node | Term
Entries: TypeAlias = Mapping[str, Entry]


def check_name(name: object, section: str) -> str:
    """Hold a name against rule 1: an identifier, no keyword, no word of the language.

    Raises:
        SpecError: with the section and the name.

    """
    try:
        text = identifier(name)
    except SpecError as error:
        raise SpecError(f"a name {error}", section=section, node=str(name)) from None
    if text in WORDS or text == "guide":  # "guide.z.loc" is the guide's parameter
        raise SpecError(f"{text!r} is a word of the language, not a name", section=section, node=text)
    return text


def terms_of(entry: Entry) -> list[tuple[str, Term]]:
    """An entry's parameters and their terms; a named term counts as its own only parameter, ""."""
    return list(entry.terms().items()) if isinstance(entry, Node) else [("", entry)]


def parts_of(entry: Entry) -> Iterator[tuple[Term, bool]]:
    """The simple terms of an entry, sums opened; with each, whether it stands in a sum."""
    for _, term in terms_of(entry):
        if isinstance(term, Sum):
            yield from ((part, True) for part in term.terms)
        else:
            yield term, False


def node_parents(entries: Entries, entry: Entry) -> tuple[str, ...]:
    """The nodes an entry depends on, named terms resolved; names that are no entry here count as nodes."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    stack = list(reversed(entry.parents()))
    while stack:
        name = stack.pop()
        target = entries.get(name)
        if not isinstance(target, Term):
            found[name] = None
        elif name not in seen:
            seen.add(name)
            stack.extend(reversed(target.parents()))
    return tuple(found)


def check_references(model: Entries) -> None:
    """Hold every reference of the model to be declared above, and to be of the kind its place needs.

    Raises:
        SpecError: an unknown name, one declared below, or a cycle (printed).

    """
    above: dict[str, Entry] = {}
    for name, entry in model.items():
        for parent in entry.parents():
            if parent not in above:
                raise _unresolved(model, name, parent, list(above))
        check_uses(name, entry, above, section="model")
        above[name] = entry


def _unresolved(model: Entries, name: str, parent: str, above: list[str]) -> SpecError:
    so_far = ", ".join(above) or "nothing"
    message = f"{name!r} refers to {parent!r}, which is not declared above it"
    if parent not in model:
        message += f"{nearest(parent, above) or ';'} declared so far: {so_far}"
    elif (way := _way(model, parent, name)) is not None:
        message = f"{name!r} refers to {parent!r} in a cycle: {' -> '.join([name, *way])}"
    else:
        message += f" but below it; declared so far: {so_far}"
    return SpecError(message, section="model", node=name, word=parent)


def _way(model: Entries, start: str, goal: str) -> list[str] | None:
    """A shortest chain of references from start to goal."""
    ways: dict[str, list[str]] = {start: [start]}
    queue = [start]
    for name in queue:  # grows while it is walked
        if name == goal:
            return ways[name]
        for parent in model[name].parents():
            if parent in model and parent not in ways:
                ways[parent] = [*ways[name], parent]
                queue.append(parent)
    return None


def _check_total(name: str, entry: Entry, known: Entries, section: str) -> None:
    """Refuse a total_count that a named term would give: totals are not learned."""
    total = getattr(entry, "total_count", None)
    given = isinstance(entry, Node) and entry.constraints.get("total_count") == "count"
    if given and isinstance(total, Name) and isinstance(known[total.name], Term):
        raise SpecError(
            f"{name!r} needs total_count given with every row, but {total} is {known[total.name]}; "
            f"write {total}: Input()",
            section=section,
            node=name,
            word=total.name,
        )


def check_uses(name: str, entry: Entry, known: Entries, *, section: str) -> None:
    """Hold each name against its use: categories in By and by=, values with a width in functions and sums.

    Args:
        name: the entry that refers.
        entry: its node or term.
        known: what can be referred to.
        section: "model" or "guide", for the message.

    Raises:
        SpecError: naming both entries.

    """
    _check_total(name, entry, known, section)
    for part, in_sum in parts_of(entry):
        categories = part.of if isinstance(part, By) else part.by if isinstance(part, Function) else ()
        for parent in categories:
            if not is_categorical(known[parent]):
                raise SpecError(
                    f"{name!r} needs a category, but {parent!r} is {_kind(known[parent])}; "
                    f"write Linear({parent}) or MLP({parent}, [...]) for a function of it",
                    section=section,
                    node=name,
                    word=parent,
                )
        values = part.of if isinstance(part, Function) else part.parents() if in_sum else ()
        for parent in values:
            if not _has_width(known[parent], known):
                raise SpecError(
                    f"{name!r} uses {parent!r} as a value, so its width must be written: "
                    f"{parent}: {_with_dim(known[parent])}",
                    section=section,
                    node=name,
                    word=parent,
                )
        if isinstance(part, Name):
            _check_bare(name, entry, part.name, known, section)
    _check_convolutions(name, entry, known, section)


def _check_convolutions(name: str, entry: Entry, known: Entries, section: str) -> None:
    """Hold every Conv, also one that a name stands for, against the images at its ends."""
    for parameter, term in terms_of(entry):
        for part in term.terms if isinstance(term, Sum) else (term,):
            found = known.get(part.name) if isinstance(part, Name) else part
            if isinstance(found, Conv):
                try:
                    check_convolution(name, parameter, found, entry, known, as_node=isinstance(entry, Node))
                except SpecError as error:
                    error.section, error.node = section, name
                    raise


def is_categorical(entry: Entry) -> bool:
    """Whether an entry can be one; an Input becomes one where a category is needed."""
    return isinstance(entry, Input) or (isinstance(entry, Node) and entry.support in ("category", "boolean"))


def _kind(entry: Entry) -> str:
    return f"the term {entry}" if isinstance(entry, Term) else f"the {entry.support} node {entry}"


def _has_width(entry: Entry, known: Entries) -> bool:
    while isinstance(entry, Name):
        entry = known[entry.name]
    if isinstance(entry, Node | MLP):
        return True
    if isinstance(entry, Conv):  # from an image to numbers, whose count the image settles
        return any(image_of(getattr(known[parent], "dim", None)) for parent in entry.of)
    if isinstance(entry, Sum):
        return any(_has_width(part, known) for part in entry.terms)
    return getattr(entry, "dim", None) is not None


def _with_dim(entry: Entry) -> str:
    text = str(entry)
    return f"{text[:-1]}{'' if text.endswith('()') else ', '}dim=...)" if text.endswith(")") else text


def _check_bare(name: str, entry: Entry, parent: str, known: Entries, section: str) -> None:
    """A bare name stands for numbers of the node's own width, or one for all."""
    target = known[parent]
    if isinstance(target, Node) and target.support == "category":
        raise SpecError(
            f"{name!r} uses the category {parent!r} as a number; write By({parent}) for one value a category",
            section=section,
            node=name,
            word=parent,
        )
    width = target.width if isinstance(target, Node) else None
    own = entry.width if isinstance(entry, Node) else None
    if width is not None and own is not None and width not in (1, own):
        raise SpecError(
            f"{name!r} is {own} wide ({entry}), but {parent!r} is {width} wide ({target})",
            section=section,
            node=name,
            word=parent,
        )
