"""One option of a declaration changed, by its dotted path."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ppl_gen.declare.declared import SPOKEN, Declared, nearest, options
from ppl_gen.declare.node import Node
from ppl_gen.declare.notation import ENTRY_WORDS, parse
from ppl_gen.errors import SpecError

if TYPE_CHECKING:
    from ppl_gen.declare.spec import Spec


def changed(spec: Spec, path: str, value: object) -> Spec:
    """`Spec.replace`: rebuild the entry, and with it the whole declaration, so that every rule is checked.

    Raises:
        SpecError: a step of the path does not exist, or the new value does not fit.

    """
    if isinstance(value, str):
        value = parse(value, ENTRY_WORDS)
    section, steps = "model", path.split(".")
    if steps[0] == "guide":
        if spec.guide is None:
            raise SpecError(f"{path!r} names the guide, but none is written", section="guide")
        section, steps = "guide", steps[1:]
    sections = {"model": dict(spec.model), "guide": dict(spec.guide or {})}
    entries = sections[section]
    name = steps[0] if steps else ""
    if name not in entries:
        raise SpecError(_no_step(path, name, f"the {section}", list(entries)), section=section, node=name)
    before = entries[name]
    entries[name] = _rebuilt(before, path, steps[1:], value)
    twin = sections["guide"].get(name)
    sized = section == "model" and steps[1:] in (["k"], ["dim"]) and isinstance(twin, Node)
    if sized and getattr(twin, steps[1], None) == getattr(before, steps[1]) is not None:
        # A latent's size is one number, written in the model and again in the guide.
        sections["guide"][name] = _rebuilt(twin, path, steps[1:], value)
    return type(spec)(sections["model"], sections["guide"] or None, spec.columns)


def _no_step(path: str, step: str, where: str, choices: list[str]) -> str:
    return f"{path!r}: {where} has no {step!r}{nearest(step, choices) or ';'} it has: {', '.join(choices)}"


def _rebuilt(thing: object, path: str, steps: list[str], value: object) -> Any:
    if not steps:
        return value
    if not isinstance(thing, Declared) or not dataclasses.is_dataclass(thing):
        raise SpecError(f"{path!r}: {thing} has no options, so {steps[0]!r} leads nowhere")
    step = next((field for field, word in SPOKEN.items() if word == steps[0]), steps[0])
    choices = options(type(thing))
    if step not in choices:
        raise SpecError(_no_step(path, steps[0], str(thing), [SPOKEN.get(c, c) for c in choices]))
    new = {step: _rebuilt(getattr(thing, step), path, steps[1:], value)}
    if isinstance(thing, Node) and thing.either is not None and step in thing.either:
        new[next(other for other in thing.either if other != step)] = None  # the other way of writing it
    return dataclasses.replace(thing, **new)
