"""What a recorded step computes twice, and what it computes again at every call though it never changes.

EM runs one step many times over the same rows. Their features, indicators and normalising constants never change,
and a traced graph shows which operations those are: the ones no parameter reaches.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Graph, Node

from ppl_gen.program.memory import filled_with, is_contiguous, is_view, large, same_form
from ppl_gen.program.recorded import Recorded

_ATEN = torch.ops.aten
# Views that may turn out to be what they are a view of.
_RESHAPING = {
    _ATEN.view.default,
    _ATEN._unsafe_view.default,
    _ATEN.expand.default,
    _ATEN.permute.default,
    _ATEN.transpose.int,
    _ATEN.slice.Tensor,
}
_TRAITS: dict[int, tuple[Any, bool, bool]] = {}  # by the operation's id, which it keeps while it stands here
_FILLS = {_ATEN.ones_like.default: 1.0, _ATEN.zeros_like.default: 0.0}


def merge_equal(graph: Graph) -> None:
    """Let one node stand for all that apply the same operation to the same inputs, and drop what is unused.

    torch has such a pass, but with it comes the import of all of inductor: seconds at every start. Views that
    change nothing and products with 1 are left out too.
    """
    _fill_plainly(graph)
    first: dict[object, Node] = {}
    node: Any
    for node in list(graph.nodes):
        if node.target is _ATEN.detach.default:  # nothing differentiates a recorded graph
            node.replace_all_uses_with(node.args[0])
            continue
        if node.target in _RESHAPING and same_form(node, node.args[0]):
            node.replace_all_uses_with(node.args[0])
            continue
        if node.op != "call_function" or _random(node) or _mutates(node) or _is_mutated(node):
            continue
        factor = _other_factor(node)
        if factor is not None:
            node.replace_all_uses_with(factor)
            continue
        key = (id(node.target), _frozen(node.args), _frozen(node.kwargs))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
        else:
            first[key] = node
    graph.eliminate_dead_code()


def _frozen(written: Any) -> object:
    """Arguments as something that can be looked up; 1, 1.0 and True are three."""
    if isinstance(written, (list, tuple)):
        return tuple(map(_frozen, written))
    if isinstance(written, dict):
        return tuple((key, _frozen(value)) for key, value in written.items())
    return type(written), written


def _fill_plainly(graph: Graph) -> None:
    """`ones_like` and `zeros_like` need nothing of the tensor they are like: its shape is known."""
    node: Any
    for node in graph.nodes:
        result = node.meta.get("tensor_meta")
        if node.target in _FILLS and is_contiguous(result):
            kwargs = {"dtype": result.dtype, "device": node.meta["device"], "pin_memory": False}
            node.args, node.kwargs = (list(result.shape), _FILLS[node.target]), kwargs
            node.target = _ATEN.full.default


def _other_factor(node: Any) -> Node | None:
    """Of a product with 1, and of the same shape as the whole, the other factor."""
    if node.target is not _ATEN.mul.Tensor or any(user.op == "output" for user in node.users):
        return None
    for one, other in (node.args, node.args[::-1]):
        if not (isinstance(one, Node) and isinstance(other, Node) and same_form(other, node)):
            continue
        if filled_with(base_of(one)) == 1.0 and not any(map(_is_mutated, (other, one, base_of(one)))):
            return other
    return None


def base_of(node: Node) -> Node:
    """What made the memory that a node is a view of."""
    while node.op == "call_function" and is_view(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def split(recorded: Recorded, steady: Collection[int]) -> tuple[Recorded, Recorded, Recorded]:
    """(prologue, interlude, body) with body(*prologue(*steady inputs), *interlude(*other inputs)) the whole.

    The prologue holds what depends on the steady inputs alone, the interlude what depends on the others alone;
    what depends on no input is computed in either. Large stacks of products are left to the body (`_made_anew`).

    Args:
        recorded: a flat graph, tensors in and a list of tensors out.
        steady: positions of the inputs that stay the same from call to call.
    """
    inputs = [node for node in recorded.graph.nodes if node.op == "placeholder"]
    kept = {node for position, node in enumerate(inputs) if position in steady}
    moving = set(inputs) - kept
    constants = _closed_under(recorded.graph, set())
    early = _closed_under(recorded.graph, kept | constants)
    anew = _made_anew(recorded.graph, early)
    early -= anew
    between = _closed_under(recorded.graph, moving | constants) - constants - anew
    late = [n for n in recorded.graph.nodes if n not in early and n not in between]
    needed = {source for node in late for source in node.all_input_nodes}
    first, known = _part(recorded, early, [n for n in recorded.graph.nodes if n in early and n in needed])
    second, derived = _part(
        recorded, between | constants, [n for n in recorded.graph.nodes if n in between and n in needed]
    )
    body = Graph()
    copies: dict[Node, Node] = {}
    for node in (*known, *derived):
        copies[node] = body.placeholder(f"given_{node.name}")
        copies[node].meta = node.meta
    for node in late:
        if node.op == "output":
            body.node_copy(node, copies.__getitem__)
        elif node.op != "placeholder":
            copies[node] = body.node_copy(node, copies.__getitem__)
    return first, second, Recorded(body, recorded.held)


def _made_anew(graph: Graph, early: set[Node]) -> set[Node]:
    """Of what never changes, the tables that are as quick to make as to read: not worth the memory of keeping them.

    Those are stacks, of rows or products of rows, at least twice as large as what they are made of. Made by one
    block's worth at a time they need not leave the processor's cache.
    """
    found: set[Node] = set()
    node: Any
    for node in list(graph.nodes):
        if node.target is not _ATEN.cat.default or node not in early or not large(node):
            continue
        readers = _views_of(node, early)
        if readers is None or not any(user not in early for reader in readers for user in reader.users):
            continue
        pieces = list(node.args[0])
        products = {n for n in pieces if n.target is _ATEN.mul.Tensor and list(n.users) == [node]}
        rest = [n for n in pieces if n not in products and filled_with(n) is None]
        sources = {base_of(source) for product in products for source in product.all_input_nodes}
        sources |= {base_of(n) for n in rest}
        if 2 * sum(map(_numbers, sources)) > _numbers(node):
            continue
        with graph.inserting_before(node):
            fills = {n: graph.node_copy(n) for n in pieces if filled_with(n) is not None}
        node.args = ([fills.get(n, n) for n in pieces], *node.args[1:])
        found |= products | readers | set(fills.values())
    return found


def _views_of(node: Node, early: set[Node]) -> set[Node] | None:
    """A node with its views, and theirs, among the early ones; None where one of those computes with it."""
    found, front = {node}, [node]
    while front:
        for user in front.pop().users:
            if user in early:
                if not is_view(user):
                    return None
                found.add(user)
                front.append(user)
    return found


def _numbers(node: Node) -> int:
    return int(node.meta["tensor_meta"].shape.numel())


def _closed_under(graph: Graph, given: set[Node]) -> set[Node]:
    """The given nodes and all that can be computed from them, random and in-place operations left out."""
    found = set(given)
    for node in graph.nodes:
        changing = _random(node) or _mutates(node) or _is_mutated(node)
        if node.op == "call_function" and not changing and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _part(recorded: Recorded, nodes: set[Node], wanted: list[Node]) -> tuple[Recorded, list[Node]]:
    """A graph of its own from some nodes, returning the wanted ones."""
    part = Graph()
    copies: dict[Node, Node] = {}
    for node in recorded.graph.nodes:
        if node in nodes:
            if node.op == "placeholder":
                copies[node] = part.placeholder(node.name)
                copies[node].meta = node.meta
            else:
                copies[node] = part.node_copy(node, copies.__getitem__)
    part.output([copies[node] for node in wanted])
    part.eliminate_dead_code()
    return Recorded(part, recorded.held), wanted


def _random(node: Node) -> bool:
    return _traits(node.target)[0]


def _is_mutated(node: Node) -> bool:
    return any(_mutates(user) for user in node.users)


def _mutates(node: Node) -> bool:
    return _traits(node.target)[1]


def _traits(target: Any) -> tuple[bool, bool]:
    """Whether an operation draws random numbers, and whether it writes into its inputs."""
    known = _TRAITS.get(id(target))  # torch's operations have a hash of their own, in Python
    if known is None or known[0] is not target:
        schema = getattr(target, "_schema", None)
        random = torch.Tag.nondeterministic_seeded in getattr(target, "tags", ())
        known = _TRAITS[id(target)] = target, random, schema is not None and schema.is_mutable
    return known[1:]
