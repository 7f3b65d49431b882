"""A guide derived from the model, where none is written (rule 20)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from ppl_gen.declare import scope
from ppl_gen.declare.images import image_of
from ppl_gen.declare.node import Node, unique
from ppl_gen.declare.nodes import MultivariateNormal
from ppl_gen.declare.scope import Entry
from ppl_gen.declare.terms import MLP, Conv, Free, Function, Linear, Network, Term

if TYPE_CHECKING:
    from ppl_gen.declare.spec import Roles, Spec


WIDTH = 64  # of the trunk where the model's own path tells no size: a Net, or no network and rows with holes


def derive_guide(spec: Spec, roles: Roles, holes: Collection[str] = ()) -> dict[str, Entry]:
    """Declare a guide for the continuous latents, last first, each in its own family.

    q(z | ·) has all its parameters as affine heads on one trunk, a network of what depends on z and is
    observed, the Inputs, and the latents already sampled, with the hidden sizes of z's first network path to
    the data reversed; where that path has convolutions, images enter through convolutions first. Where it is
    affine, so are the parameters, with no trunk; but where cells may be missing, what a cell says depends on which
    others are seen, and there is one of 64 units.

    Args:
        spec: the declaration.
        roles: who is observed and who is latent.
        holes: the observed nodes with missing cells.

    Returns:
        The guide's entries in sampling order; empty where no latent is continuous.

    Example:
        >>> from ppl_gen.declare.files import read_spec
        >>> spec = read_spec("vae_bernoulli")
        >>> derive_guide(spec, spec.roles())
        {'z_trunk': MLP(x, [256]), 'z': Normal(8, loc=Linear(z_trunk), scale=Linear(z_trunk))}

    """
    guide: dict[str, Entry] = {}
    sampled: list[str] = []
    for name in reversed(roles.latent):
        node = spec.nodes[name]
        if node.discrete:
            continue
        seen = unique([*_evidence(spec, roles, name), *roles.inputs, *sampled])
        path = _path(spec, roles, name)
        if not path and not {*seen}.isdisjoint(holes):
            path = (MLP(name, (WIDTH,)),)
        for trunk, term in _trunks(spec, name, seen, path).items():
            unused = trunk
            while unused in spec.model or unused in guide:
                unused += "_"
            guide[unused] = term
            seen = unique([*(other for other in seen if other not in term.parents()), unused])
        guide[name] = _headed(node, seen)
        sampled.append(name)
    return guide


def _headed(node: Node, seen: tuple[str, ...]) -> Node:
    """The node's family and size, each parameter an affine function of what is seen."""
    head: Term = Linear(seen) if seen else Free()
    # A covariance is learned through its factor.
    names = ["loc", "scale_tril"] if isinstance(node, MultivariateNormal) else list(node.constraints)
    return node.with_terms(dict.fromkeys(names, head))


def _evidence(spec: Spec, roles: Roles, name: str) -> tuple[str, ...]:
    """The observed nodes that depend on `name`, directly or through latents, in the model's order."""
    reached = {name}
    found = []
    for node in spec.nodes:  # whoever depends on a node stands below it
        if reached.intersection(spec.node_parents(node)):
            if node in roles.observed:
                found.append(node)
            else:
                reached.add(node)
    return tuple(found)


def _trunks(spec: Spec, name: str, seen: tuple[str, ...], path: tuple[Network, ...]) -> dict[str, MLP | Conv]:
    """The networks between what is seen and the heads: for each image a convolution, then one for all."""
    trunks: dict[str, MLP | Conv] = {}
    convolutions = [part for part in path if isinstance(part, Conv)]
    images = [other for other in seen if image_of(spec.nodes[other].dim)] if convolutions else []
    for image in images:
        channels = [size for part in convolutions for size in part.channels][::-1]
        like = replace(convolutions[0], of=(image,), channels=tuple(channels), transform=None)
        trunks[f"{name}_{image}_trunk"] = like
    layers = [part for part in path if not isinstance(part, Conv)]
    if layers and seen:
        sizes = [size for part in layers for size in (part.hidden if isinstance(part, MLP) else (WIDTH,))]
        activation = next((part.activation for part in layers if isinstance(part, MLP)), "relu")
        entering = [f"{name}_{other}_trunk" if other in images else other for other in seen]
        trunks[f"{name}_trunk"] = MLP(entering, sizes[::-1], activation=activation)
    return trunks


def _path(spec: Spec, roles: Roles, name: str) -> tuple[Network, ...]:
    """The networks on the first path from a latent to the data that has any, in the model's order."""
    passed: dict[str, tuple[Network, ...]] = {name: ()}  # what is on the way from the latent to each entry
    for entry_name, entry in spec.model.items():
        ways = [
            (*passed[parent], part) if isinstance(part, Network) else passed[parent]
            for part, _ in scope.parts_of(entry)
            for parent in (part.of if isinstance(part, Function) else part.parents())
            if parent in passed
        ]
        if not ways:
            continue
        first = next((way for way in ways if way), ())
        if entry_name not in roles.observed:
            passed[entry_name] = first
        elif first:
            return first
    return ()
