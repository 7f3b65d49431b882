"""A whole declaration: a model, perhaps a guide, perhaps the columns that its nodes are read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import SkipValidation

from ppl_gen.declare import scope
from ppl_gen.declare.change import changed
from ppl_gen.declare.declared import declared, nearest
from ppl_gen.declare.guide_rules import check_guide, check_model_only, check_roles
from ppl_gen.declare.nodes import Input, Node
from ppl_gen.declare.scope import Entry
from ppl_gen.declare.terms import By, Free, Function, Term, Value
from ppl_gen.declare.yaml_text import format_spec
from ppl_gen.errors import SpecError


@dataclasses.dataclass(frozen=True)
class Roles:
    """What the data has, what it lacks, and what is given with every row: names in the model's order."""

    observed: tuple[str, ...]
    latent: tuple[str, ...]
    inputs: tuple[str, ...]


@declared
class Spec:
    """A declared model: a map from names to nodes, in generative order.

    A node refers to the nodes and named terms above it; the graph is read off the terms. The same holds for
    the guide, which sees the data, Inputs and its own earlier names.

    Args:
        model: name → node, or a term that stands as a named quantity of its own.
        guide: the same for the guide; None: derived from the model.
        columns: name of a node → the data's column or columns; None: found by name.

    Raises:
        SpecError: naming the entry, the problem and the choices.

    Example:
        >>> from ppl_gen.declare.nodes import Categorical, MultivariateNormal
        >>> Spec(model=dict(z=Categorical(3), x=MultivariateNormal(2, loc=By("z"), cov=By("z"))))
        model:
          z: Categorical(3)
          x: MultivariateNormal(2, loc=By(z), cov=By(z))
        <BLANKLINE>

    """

    # Validated as one, in __post_init__: each section is held against the ones before it.
    model: Annotated[dict[str, Entry], SkipValidation]
    guide: Annotated[dict[str, Entry] | None, SkipValidation] = None
    columns: Annotated[dict[str, tuple[str, ...]] | None, SkipValidation] = None

    if TYPE_CHECKING:

        def __init__(
            self,
            model: Mapping[str, Entry],
            guide: Mapping[str, Entry] | None = None,
            columns: Mapping[str, str | Collection[str]] | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # completes the frozen value once, before anybody sees it
        set_field(self, "model", _entries(self.model, "model"))
        check_model_only(self.model)
        scope.check_references(self.model)
        if not set(self.nodes) - set(self.inputs):
            raise SpecError("a model needs at least one node that is not an Input", section="model")
        if self.columns is not None:
            set_field(self, "columns", _columns(self.columns, self.nodes))
        if self.guide is not None:
            set_field(self, "guide", _entries(self.guide, "guide"))
            check_guide(self)
        if self.guide is not None or self.columns is not None:
            self.roles()

    def __eq__(self, other: object) -> bool:
        """Equal when written the same, order included."""
        return self._key() == other._key() if isinstance(other, Spec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        sections: tuple[Mapping[str, object] | None, ...] = (self.model, self.guide, self.columns)
        return tuple(None if section is None else tuple(section.items()) for section in sections)

    @property
    def nodes(self) -> dict[str, Node]:
        """The model's nodes, Inputs included, in order."""
        return {name: entry for name, entry in self.model.items() if isinstance(entry, Node)}

    @property
    def named(self) -> dict[str, Term]:
        """The model's named terms, in order."""
        return {name: entry for name, entry in self.model.items() if isinstance(entry, Term)}

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the Inputs."""
        return tuple(name for name, node in self.nodes.items() if isinstance(node, Input))

    @property
    def leaves(self) -> tuple[str, ...]:
        """The nodes, Inputs apart, that no node depends on, directly or through named terms."""
        used = {parent for name in self.nodes for parent in self.node_parents(name)}
        return tuple(
            name for name, node in self.nodes.items() if name not in used and not isinstance(node, Input)
        )

    def node_parents(self, name: str) -> tuple[str, ...]:
        """The nodes that the entry `name` of the model depends on, named terms resolved."""
        return scope.node_parents(self.model, self.model[name])

    def is_category(self, name: str) -> bool:
        """Whether the node's values are categories; an Input's are with `k=`, or where one is needed."""
        node = self.nodes[name]
        if not isinstance(node, Input):
            return node.support == "category"
        needed: set[str] = set()
        for entry in (*self.model.values(), *(self.guide or {}).values()):
            for part, _ in scope.parts_of(entry):
                if isinstance(part, By):
                    needed.update(part.of)
                elif isinstance(part, Function):
                    needed.update(part.by)
        return node.k is not None or name in needed

    def roles(self, present: Collection[str] | None = None) -> Roles:
        """What is observed and what is latent (rule 16).

        Args:
            present: the names the data has; None, before there are data: those of `columns`, else the leaves.

        Raises:
            SpecError: a latent that is not a leaf has no written size or cannot be summed out, or a written
                guide lacks a continuous one.

        Example:
            >>> from ppl_gen.declare.nodes import Normal
            >>> from ppl_gen.declare.terms import Linear
            >>> Spec(model=dict(z=Normal(1, loc=0, scale=1), x=Normal(2, loc=Linear("z")))).roles()
            Roles(observed=('x',), latent=('z',), inputs=())

        """
        known = present if present is not None else self.columns or self.leaves
        random = [name for name, node in self.nodes.items() if not isinstance(node, Input)]
        roles = Roles(
            observed=tuple(name for name in random if name in known),
            latent=tuple(name for name in random if name not in known),
            inputs=self.inputs,
        )
        check_roles(self, roles, decided=present is not None or self.columns is not None)
        return roles

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is usable but imperfect in the declaration, one sentence each."""
        found = []
        for name in self.roles().latent:
            terms = self.nodes[name].terms()
            if self.nodes[name].support == "real" and all(isinstance(term, Free) for term in terms.values()):
                found.append(
                    f"{name!r} is latent with location and scale free: not identified; write loc=0, scale=1"
                )
        return tuple(found)

    def replace(self, path: str, value: object) -> Spec:
        """The same declaration with one option changed.

        Args:
            path: dots lead from the entry to the option: "z.k", "x.loc.hidden", "guide.z.dim"; or an entry
                alone, "x".
            value: the new value, as Python or as text in the notation.

        Raises:
            SpecError: naming the choices at the step that does not exist.

        Example:
            >>> from ppl_gen.declare.nodes import Categorical
            >>> Spec(model=dict(x=Categorical(2))).replace("x.k", 3).model
            {'x': Categorical(3)}

        """
        return changed(self, path, value)

    def __repr__(self) -> str:
        """The declaration as YAML, which `read_spec` reads back."""
        return format_spec(self)


def _entries(section: object, title: str) -> dict[str, Entry]:
    if not isinstance(section, Mapping) or not section:
        raise SpecError(f"{title} must map names to nodes and terms, at least one", section=title)
    found: dict[str, Entry] = {}
    for key, entry in section.items():
        name = scope.check_name(key, title)
        if not isinstance(entry, Node | Term) or isinstance(entry, Value):
            shown = str(entry)
            raise SpecError(
                f"{name!r} must be a node, as Normal(2), or a term, as MLP(z, [256]), got {shown[:80]}",
                section=title,
                node=name,
            )
        found[name] = entry
    return found


def _columns(columns: object, nodes: Mapping[str, Node]) -> dict[str, tuple[str, ...]]:
    if not isinstance(columns, Mapping) or not columns:
        raise SpecError("columns must map nodes to the data's columns, at least one", section="columns")
    found: dict[str, tuple[str, ...]] = {}
    for name, given in columns.items():
        place = {"section": "columns", "node": str(name)}
        if name not in nodes:
            hint = nearest(str(name), nodes) or ";"
            raise SpecError(
                f"columns name {name!r}, which is no node{hint} nodes: {', '.join(nodes)}",
                word=str(name),
                **place,
            )
        listed = (given,) if isinstance(given, str) else given
        if not isinstance(listed, list | tuple) or not listed or not all(isinstance(c, str) for c in listed):
            raise SpecError(f"the columns of {name!r} must be a column's name or a list of them", **place)
        for i, column in enumerate(listed):
            if column in listed[:i]:
                raise SpecError(f"the columns of {name!r} name {column!r} twice", word=column, **place)
        node = nodes[name]
        if node.dim is not None and node.width != len(listed):
            raise SpecError(f"{name!r} has {len(listed)} columns, but is declared {node}", **place)
        found[name] = tuple(listed)
    return found
