"""A guide derived from the model, where none is written (rule 20)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppl_gen.declare import scope
from ppl_gen.declare.node import Node, unique
from ppl_gen.declare.nodes import MultivariateNormal
from ppl_gen.declare.scope import Entry
from ppl_gen.declare.terms import MLP, Free, Linear, Term

if TYPE_CHECKING:
    from ppl_gen.declare.spec import Roles, Spec


def derive_guide(spec: Spec, roles: Roles) -> dict[str, Entry]:
    """Declare a guide for the continuous latents, last first, each in its own family.

    q(z | ·) has all its parameters as affine heads on one trunk, a network of what depends on z and is
    observed, the Inputs, and the latents already sampled, with the hidden sizes of z's first network path to
    the data reversed. Where that path is affine, so are the parameters, with no trunk.

    Args:
        spec: the declaration.
        roles: who is observed and who is latent.

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
        network = _network(spec, roles, name)
        if seen and network is not None:
            trunk = f"{name}_trunk"
            while trunk in spec.model or trunk in guide:
                trunk += "_"
            guide[trunk] = MLP(seen, network.hidden[::-1], activation=network.activation)
            seen = (trunk,)
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


def _network(spec: Spec, roles: Roles, name: str) -> MLP | None:
    """The hidden layers on the first path from a latent to the data that has any, as one network."""
    passed: dict[str, tuple[MLP, ...]] = {name: ()}  # the networks on the way from the latent to each entry
    for entry_name, entry in spec.model.items():
        ways = [
            (*passed[parent], part) if isinstance(part, MLP) else passed[parent]
            for part, _ in scope.parts_of(entry)
            for parent in (part.of if isinstance(part, MLP | Linear) else part.parents())
            if parent in passed
        ]
        if not ways:
            continue
        first = next((way for way in ways if way), ())
        if entry_name not in roles.observed:
            passed[entry_name] = first
        elif first:
            hidden = tuple(size for network in first for size in network.hidden)
            return MLP(name, hidden, activation=first[0].activation)
    return None
