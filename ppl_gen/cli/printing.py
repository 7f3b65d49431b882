"""What the commands print of a declaration and of rows, and how they warn and complain."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_gen.declare.guide import derive_guide
from ppl_gen.declare.node import Node
from ppl_gen.declare.priors import InverseGamma
from ppl_gen.declare.scope import Entries, node_parents, terms_of
from ppl_gen.declare.spec import Roles, Spec
from ppl_gen.declare.terms import Linear, Sum
from ppl_gen.errors import SpecError

if TYPE_CHECKING:
    from ppl_gen.data.table import Table

SHOWN_COLUMNS = 8
PACKAGE = Path(__file__).parent.parent
STAND_IN = 2  # for a size that the declaration leaves to the data


def complain(message: object) -> None:
    """Say on stderr what is wrong."""
    print(f"error: {message}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """The library's warnings as one line each on stderr, each once; those of what it stands on are kept back."""
    said: set[str] = set()

    def say(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:  # noqa: ARG001
        if str(message) not in said and Path(filename).is_relative_to(PACKAGE):
            said.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = say
        yield


def roles_text(table: Table) -> str:
    """Who is observed, latent and given, with the columns read.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.files import read_spec
        >>> print(roles_text(read_table([[0.0, 1.0], [1.0, 2.0], [2.0, 0.0]], read_spec("gaussian_mixture"))))
        rows      3
        observed  x (x[0], x[1])
        latent    z
        inputs    none

    """
    schema = table.schema

    def told(name: str) -> str:
        columns = schema.column_names(name)
        if name in schema.partial:
            return f"{name} (partly; latent elsewhere)"
        if columns == (name,):
            return name
        return (
            f"{name} ({', '.join(columns) if len(columns) <= SHOWN_COLUMNS else f'{len(columns)} columns'})"
        )

    weighted = "" if table.weights is None else f", their weights sum to {table.total:g}"
    return aligned(
        {
            "rows": str(table.n_units) + weighted,
            "observed": ", ".join(map(told, schema.roles.observed)),
            "latent": ", ".join(schema.roles.latent) or "none",
            "inputs": ", ".join(map(told, schema.roles.inputs)) or "none",
        }
    )


def spec_text(spec: Spec) -> str:
    """A declaration, its graph, its factorisation, its guide, its route, and how each latent is dealt with.

    Example:
        >>> from ppl_gen.declare.phrasebook import vae
        >>> print(spec_text(vae(2, (8,))))  # doctest: +ELLIPSIS
        model:
          z: Normal(2, loc=0, scale=1)
          x: Normal(loc=MLP(z, [8]), scale=1)
        <BLANKLINE>
        observed  x (the leaves, taken as observed before there are data)
        latent    z
        inputs    none
        graph     z → x
        model     p(x, z) = p(z) · p(x | z)
        guide     q(z | x)
                  z_trunk: MLP(x, [8])
                  z: Normal(2, loc=Linear(z_trunk), scale=Linear(z_trunk))
                  (derived)
        route     SVI: 'z' is a continuous latent, and x.loc = MLP(z, [8]) is not linear in the latents (with 2...
        plan      z: reparameterised (Normal), KL sampled

    """
    roles = spec.roles()
    why = "as columns: says" if spec.columns else "the leaves, taken as observed before there are data"
    arrows = [f"{', '.join(above)} → {name}" for name in spec.nodes if (above := spec.node_parents(name))]
    facts = {
        "observed": f"{', '.join(roles.observed)} ({why})",
        "latent": ", ".join(roles.latent) or "none",
        "inputs": ", ".join(roles.inputs) or "none",
        "graph": "; ".join(arrows) or "no arrows",
        "model": _joint(spec, roles),
        "guide": "\n".join(_guide(spec, roles)),
    }
    facts["route"], planned = _route(spec)
    if planned:
        facts["plan"] = "\n".join(planned)
    if priors := list(priors_of(spec)):
        facts["priors"] = "\n".join(priors)
    return f"{spec}\n{aligned(facts)}"


def aligned(facts: Mapping[str, str]) -> str:
    """Names in one column, what is said of them in the next, over as many lines as it takes."""
    width = max(map(len, facts)) + 2
    lines = (
        f"{name if not i else '':<{width}}{part}".rstrip()
        for name, text in facts.items()
        for i, part in enumerate(text.split("\n"))
    )
    return "\n".join(lines)


def _joint(spec: Spec, roles: Roles) -> str:
    """P(x, z) as a product over nodes, in generative order."""
    given = f" | {', '.join(roles.inputs)}" if roles.inputs else ""
    names = [name for name in spec.nodes if name not in roles.inputs]
    return f"p({', '.join((*roles.observed, *roles.latent))}{given}) = {_product('p', names, spec.model)}"


def _product(letter: str, names: list[str], entries: Entries) -> str:
    factors = []
    for name in names:
        above = node_parents(entries, entries[name])
        factors.append(f"{letter}({name}{' | ' if above else ''}{', '.join(above)})")
    return " · ".join(factors)


def _guide(spec: Spec, roles: Roles) -> Iterator[str]:
    guide = spec.guide if spec.guide is not None else derive_guide(spec, roles)
    drawn = [name for name, entry in guide.items() if isinstance(entry, Node)]
    summed = [name for name in roles.latent if name not in drawn]
    if drawn:
        yield _product("q", drawn, guide)
        yield from (f"{name}: {entry}" for name, entry in guide.items())
        yield "(as written)" if spec.guide is not None else "(derived)"
    if summed:
        yield f"{', '.join(summed)}: exact, every value is enumerated"
    elif not drawn:
        yield "none: nothing is latent"


def priors_of(spec: Spec) -> Iterator[str]:
    """Each prior beside what it is a prior of, as the densities are taken."""
    for name, entry in spec.model.items():
        for key, term in terms_of(entry):
            for part in term.terms if isinstance(term, Sum) else (term,):
                if (prior := getattr(part, "prior", None)) is None:
                    continue
                whole = not isinstance(term, Sum | Linear)
                square = "²" if whole and key == "scale" and isinstance(prior, InverseGamma) else ""
                what = f"{name}.{key}".rstrip(".") + square
                yield f"{what if whole else f'{part} in {what}'} ~ {prior}"


def _route(spec: Spec) -> tuple[str, list[str]]:
    """The algorithm that `fit` would take, and why, and its plan; a size left to the data is stood in for."""
    # Imported here: the declaration alone is printed without torch.
    from ppl_gen.data.sizes import declared_sizes, schema_without_data
    from ppl_gen.infer.algorithms import described
    from ppl_gen.infer.plan import plan
    from ppl_gen.infer.route import route
    from ppl_gen.program.program import compile_spec

    known = declared_sizes(spec)
    open_dims = [name for name in spec.nodes if name not in known.dims and not spec.is_category(name)]
    open_k = [name for name in spec.nodes if name not in known.k and spec.is_category(name)]
    sizes = {f"{n}.dim": STAND_IN for n in open_dims} | {f"{n}.k": STAND_IN for n in open_k}
    try:
        program = compile_spec(spec, schema_without_data(spec, sizes))
        algorithm, reason = route(program)
    except SpecError as error:
        if not sizes:
            raise
        return f"for the data to decide: {error}", []
    stood_in = [f"{STAND_IN} columns for {n}" for n in open_dims] + [f"k={STAND_IN} for {n}" for n in open_k]
    told = reason + (f" (with {', '.join(stood_in)}, which the data decide)" if stood_in else "")
    return told, list(plan(program, described(algorithm)))
