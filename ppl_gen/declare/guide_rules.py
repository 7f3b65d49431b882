"""What a written guide and the latents of a model must satisfy (rules 3, 4, 19)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ppl_gen.declare import scope
from ppl_gen.declare.declared import nearest
from ppl_gen.declare.nodes import Categorical, Input, Node
from ppl_gen.declare.scope import Entry
from ppl_gen.errors import SpecError

if TYPE_CHECKING:
    from ppl_gen.declare.spec import Roles, Spec

# The joint table of a vector of discrete latents is enumerated, so it has to stay small.
MAX_TABLE = 10_000


def check_model_only(model: Mapping[str, Entry]) -> None:
    """Refuse what stands in a guide alone.

    Raises:
        SpecError: naming the entry.

    """
    for name, entry in model.items():
        if isinstance(entry, Node) and entry.guide_only:
            raise SpecError(
                f"{name!r} is {entry}, and a {entry.family} stands in a guide alone, in the place of a posterior; "
                f"write it under guide:, and the model's own family here, as Normal({entry.width or '...'}, loc=0, "
                "scale=1)",
                section="model",
                node=name,
                word=entry.family,
            )


def check_guide(spec: Spec) -> None:
    """Hold a written guide against the model, as far as no data is needed.

    Raises:
        SpecError: a name that is no latent, a family or size that differs, a reference the guide cannot see.

    """
    assert spec.guide is not None
    above: dict[str, Entry] = {}
    for name, entry in spec.guide.items():
        if isinstance(entry, Node):
            _check_guide_node(spec, name, entry)
        elif name in spec.nodes:
            raise SpecError(
                f"{name!r} is a node of the model; in the guide it must be a node too", **_at(name)
            )
        if any(getattr(part, "prior", None) is not None for part, _ in scope.parts_of(entry)):
            raise SpecError(
                f"{name!r} has a prior in the guide, whose parameters have none; priors are the model's",
                **_at(name, "prior"),
            )
        known: dict[str, Entry] = {**spec.nodes, **above}
        for parent in entry.parents():
            if parent not in known or (parent in spec.guide and parent not in above):
                raise _unseen(spec, name, parent, [*spec.leaves, *spec.inputs, *above])
        scope.check_uses(name, entry, known, section="guide")
        above[name] = entry


def _at(name: str, word: str | None = None) -> dict[str, str | None]:
    return {"section": "guide", "node": name, "word": word}


def _check_guide_node(spec: Spec, name: str, node: Node) -> None:
    nodes = spec.nodes
    if name not in nodes:
        latents = [n for n in nodes if n not in spec.inputs and n not in spec.leaves]
        hint = nearest(name, latents) or ";"
        raise SpecError(
            f"the guide names {name!r}, which the model does not declare{hint} its latents: "
            f"{', '.join(latents) or 'none'}",
            **_at(name, name),
        )
    if name in spec.inputs or isinstance(node, Input) or name in spec.leaves:
        what = "an Input" if name in spec.inputs else "a leaf of the model, observed"
        if isinstance(node, Input) and name not in spec.inputs:
            what = "an Input here, which nobody samples"
        raise SpecError(f"{name!r} is {what}; a guide samples latents", **_at(name, name))
    model = nodes[name]
    if model.support != node.support:
        raise SpecError(
            f"{name!r} is {node} in the guide, but {model} in the model", **_at(name, node.family)
        )
    for option in ("k", "dim"):
        theirs, ours = getattr(model, option, None), getattr(node, option, None)
        if theirs is not None and ours is not None and theirs != ours:
            raise SpecError(
                f"{name!r} has {option}={ours} in the guide ({node}), "
                f"but {option}={theirs} in the model ({model})",
                **_at(name, str(ours)),
            )


def _unseen(spec: Spec, name: str, parent: str, seen: list[str]) -> SpecError:
    why = "is not known here"
    if parent == name:
        why = "is itself"
    elif parent in (spec.guide or {}):
        why = "is declared below it"
    elif parent in spec.named:
        why = "is a term of the model"
    hint = nearest(parent, seen) or ";"
    message = f"{name!r} in the guide refers to {parent!r}, which {why}{hint} a guide sees: {', '.join(seen)}"
    return SpecError(message, **_at(name, parent))


def check_roles(spec: Spec, roles: Roles, *, decided: bool) -> None:
    """Hold the latents against what they need, and a written guide against the latents.

    Args:
        spec: the declaration.
        roles: who is observed.
        decided: whether the roles come from data or `columns:`; before that, a size may still come from data.

    Raises:
        SpecError: as above; a leaf that the data lack is left to whoever reads them.

    """
    leaves = spec.leaves
    latents = [name for name in roles.latent if name not in leaves]
    if decided:
        for name in latents:
            _check_latent(name, spec.nodes[name])
    if spec.guide is None:
        return
    for name in latents:
        if not spec.nodes[name].discrete and name not in spec.guide:
            latent = [n for n in latents if not spec.nodes[n].discrete]
            raise SpecError(
                f"the guide lacks {name!r}, which is a continuous latent; it must name: {', '.join(latent)}",
                section="guide",
            )
    above: list[str] = [*roles.observed, *roles.inputs, *(name for name in leaves if name in roles.latent)]
    for name, entry in spec.guide.items():
        for parent in entry.parents():
            if parent not in above:
                raise _unseen(spec, name, parent, above)
        above.append(name)


def _check_latent(name: str, node: Node) -> None:
    place = {"section": "model", "node": name}
    k = node.k if isinstance(node, Categorical) else 2
    if k is None:
        raise SpecError(
            f"{name!r} is latent, so its number of categories must be written, as Categorical(3)", **place
        )
    if node.width is None:
        raise SpecError(f"{name!r} is latent, so its size must be written, as {node.family}(2)", **place)
    if node.support == "count":
        raise SpecError(f"{name!r} is a latent {node.family}, whose values cannot be summed over", **place)
    if node.discrete and node.width * math.log(k) > math.log(MAX_TABLE) + 1e-9:
        table = f"{k}^{node.width}"
        raise SpecError(
            f"{name!r} is latent with a joint table of {table} entries; "
            f"at most {MAX_TABLE} can be summed over",
            **place,
        )
