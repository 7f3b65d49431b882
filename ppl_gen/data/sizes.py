"""How wide every node is and how many categories it has: from its own words, its parameters and the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ppl_gen.data.schema import Schema, default_columns
from ppl_gen.declare.nodes import Node
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Name, Sum, Term, Value
from ppl_gen.errors import SpecError


@dataclass(frozen=True)
class Claim:
    """A size, and the words that say so: "is declared Normal(3)"."""

    size: int
    text: str


@dataclass(frozen=True)
class Sizes:
    """What a declaration alone says: the first claim for each node that makes one."""

    dims: dict[str, Claim]
    k: dict[str, Claim]


def declared_sizes(spec: Spec) -> Sizes:
    """Every size the declaration fixes: written on the node, or implied by `columns` or a parameter's shape.

    Raises:
        SpecError: two declarations of one size differ; both are named.

    Example:
        >>> from ppl_gen.declare.nodes import Normal
        >>> declared_sizes(Spec(model={"x": Normal(loc=[0, 1])})).dims["x"].size
        2

    """
    dims: dict[str, Claim] = {}
    k: dict[str, Claim] = {}
    for name, node in spec.nodes.items():
        for kept, claims in (
            (dims, _width_claims(spec, name, node)),
            (k, _category_claims(node)),
        ):
            for claim in claims:
                first = kept.setdefault(name, claim)
                if first.size != claim.size:
                    raise SpecError(f"{name!r} {first.text}, but {claim.text}", section="model", node=name)
    return Sizes(dims, k)


def is_scalar(spec: Spec, name: str, width: int) -> bool:
    """Whether a categorical node is one code a row, held as (N,), rather than a vector of them, (N, dim)."""
    return spec.is_category(name) and width == 1 and getattr(spec.nodes[name], "dim", None) is None


def schema_without_data(spec: Spec, sizes: Mapping[str, int] | None = None) -> Schema:
    """The schema of a declaration before there are rows: leaves taken as observed, mean 0, spread 1.

    Args:
        spec: the declaration.
        sizes: what the declaration leaves to the data: `{"x": 2}` gives a node's first argument (`k` for a
            categorical one, else `dim`); `{"x.dim": 7}` and `{"x.k": 2}` say which. Default: nothing.

    Raises:
        SpecError: a size is written nowhere, or it differs from what is written.

    Example:
        >>> from ppl_gen.declare.nodes import Categorical, Normal
        >>> from ppl_gen.declare.terms import By
        >>> spec = Spec(model={"z": Categorical(3), "x": Normal(loc=By("z"))})
        >>> schema_without_data(spec, {"x": 2}).dims
        {'z': 1, 'x': 2}

    """
    given = _given_sizes(spec, sizes or {})
    roles = spec.roles()
    dims, k = settle(spec, declared_sizes(spec), given)
    shown = [name for name in spec.nodes if name in {*roles.observed, *roles.inputs}]
    numeric = [
        name
        for name in shown
        if spec.nodes[name].support in ("real", "positive", "count") or _real(spec, name)
    ]
    named = spec.columns or {}
    return Schema(
        roles=roles,
        dims=dims,
        k=k,
        columns={name: named.get(name) or default_columns(name, dims[name]) for name in shown},
        levels={name: (None,) * dims[name] for name in shown if name in k},
        centre={name: (0.0,) * dims[name] for name in numeric},
        spread={name: (1.0,) * dims[name] for name in numeric},
    )


def settle(spec: Spec, declared: Sizes, found: Sizes) -> tuple[dict[str, int], dict[str, int]]:
    """Widths of all nodes, category counts of the categorical ones: as declared, else as `found`.

    Raises:
        SpecError: nothing gives a size, or the two differ.

    """
    dims: dict[str, int] = {}
    k: dict[str, int] = {}
    for name in spec.nodes:
        dims[name] = _agreed(spec, name, declared.dims.get(name), found.dims.get(name), "dim")
        if spec.is_category(name):
            k[name] = _agreed(spec, name, declared.k.get(name), found.k.get(name), "k")
    return dims, k


def _agreed(spec: Spec, name: str, declared: Claim | None, found: Claim | None, what: str) -> int:
    if declared is None and found is None:
        family = spec.nodes[name].family
        if what == "dim" and spec.is_category(name):
            return 1
        raise SpecError(
            f"the size of {name!r} is written nowhere and no data give it: "
            f"write {name}: {family}({what}, ...) with a number for {what}",
            section="model",
            node=name,
        )
    if declared is not None and found is not None and declared.size != found.size:
        raise SpecError(f"{name!r} {declared.text}, but {found.text}", section="model", node=name)
    claim = declared or found
    assert claim is not None
    return claim.size


def _given_sizes(spec: Spec, sizes: Mapping[str, int]) -> Sizes:
    dims: dict[str, Claim] = {}
    k: dict[str, Claim] = {}
    for key, size in sizes.items():
        name, _, option = key.partition(".")
        if name not in spec.nodes or option not in ("", "dim", "k"):
            raise SpecError(
                f"sizes has {key!r}; expected NODE, NODE.dim or NODE.k; the nodes are {', '.join(spec.nodes)}"
            )
        kept = k if (option or ("k" if spec.is_category(name) else "dim")) == "k" else dims
        kept[name] = Claim(size, f"sizes gives it {size}")
    return Sizes(dims, k)


def _real(spec: Spec, name: str) -> bool:
    return spec.nodes[name].support == "given" and not spec.is_category(name)


def _width_claims(spec: Spec, name: str, node: Node) -> Iterator[Claim]:
    own = getattr(node, "dim", None)
    if own is not None and node.width is not None:
        yield Claim(node.width, f"is declared {_head(node)}")
    if named := (spec.columns or {}).get(name):
        yield Claim(len(named), f"has {len(named)} column{'s' * (len(named) != 1)} under columns:")
    if isinstance(own, tuple) and len(own) > 1:
        return  # image-shaped: a parameter may broadcast along any axis, and the width is written anyway
    for parameter, term in node.terms().items():
        for size, text in _term_widths(spec, node, term):
            if size > 1:  # one value serves all dimensions
                yield Claim(size, f"has {parameter}={text} ({size} wide)")


def _category_claims(node: Node) -> Iterator[Claim]:
    own = getattr(node, "k", None)
    if own is not None:
        yield Claim(own, f"is declared {_head(node)}")
    if node.support != "category":
        return
    for parameter, term in node.terms().items():
        shape = term.shape if isinstance(term, Value) else ()
        if shape and shape[-1] > 1:
            yield Claim(shape[-1], f"has {parameter}={term} ({shape[-1]} categories)")


def _term_widths(spec: Spec, node: Node, term: Term) -> Iterator[tuple[int, str]]:
    """The widths a term in parameter position implies; nothing where it broadcasts."""
    if isinstance(term, Sum):
        for part in term.terms:
            yield from _term_widths(spec, node, part)
    elif isinstance(term, Name):
        parent = spec.nodes.get(term.name)
        if parent is not None and parent.width is not None:
            yield parent.width, str(term)
        elif term.name in spec.named:
            yield from _term_widths(spec, node, spec.named[term.name])
    elif isinstance(term, Value):
        shape = term.shape
        if node.support == "category":
            shape = shape[:-1]  # the last axis runs over categories
        if shape:
            yield shape[-1], str(term)
    elif isinstance(getattr(term, "dim", None), int):
        yield term.dim, str(term)  # type: ignore[attr-defined]


def _head(node: Node) -> str:
    """The node with its sizes only: Categorical(2, dim=7)."""
    k, dim = getattr(node, "k", None), getattr(node, "dim", None)
    size = list(dim) if isinstance(dim, tuple) else dim
    if node.support == "category":
        return f"{node.family}({', '.join([str(k)] * (k is not None) + [f'dim={size}'] * (dim is not None))})"
    return f"{node.family}({', '.join([str(size)] * (dim is not None) + [f'k={k}'] * (k is not None))})"
