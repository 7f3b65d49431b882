"""What a recorded step computes twice, and what it computes again at every call though it never changes.

EM runs one step many times over the same rows. Their features, indicators and normalising constants never change,
and a traced graph shows which operations those are: the ones no parameter reaches.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

_ATEN = torch.ops.aten
# Operation → the one that writes over its first operand, and whether the operands may change places.
_IN_PLACE = {
    _ATEN.add.Tensor: (_ATEN.add_.Tensor, True),
    _ATEN.mul.Tensor: (_ATEN.mul_.Tensor, True),
    _ATEN.sub.Tensor: (_ATEN.sub_.Tensor, False),
    _ATEN.div.Tensor: (_ATEN.div_.Tensor, False),
    _ATEN.exp.default: (_ATEN.exp_.default, False),
}


def merge_equal(graph: Graph) -> None:
    """Let one node stand for all that apply the same operation to the same inputs, and drop what is unused.

    torch has such a pass, but with it comes the import of all of inductor: seconds at every start.
    """
    first: dict[object, Node] = {}
    for node in list(graph.nodes):
        if node.target is _ATEN.detach.default:  # nothing differentiates a recorded graph
            node.replace_all_uses_with(node.args[0])
            continue
        if node.op != "call_function" or _random(node) or _mutates(node):
            continue
        leaves, form = pytree.tree_flatten((node.args, node.kwargs))
        key = (node.target, str(form), tuple((type(leaf), leaf) for leaf in leaves))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
        else:
            first[key] = node
    graph.eliminate_dead_code()


def hoist(recorded: GraphModule, steady: Collection[int]) -> tuple[GraphModule, GraphModule]:
    """(prologue, body): the prologue takes the steady inputs, the body the others and the prologue's results.

    Args:
        recorded: a flat graph, tensors in and a list of tensors out.
        steady: positions of the inputs that stay the same from call to call.
    """
    inputs = [node for node in recorded.graph.nodes if node.op == "placeholder"]
    known = {node for position, node in enumerate(inputs) if position in steady}
    for node in recorded.graph.nodes:
        if node.op == "call_function" and not _random(node) and known.issuperset(node.all_input_nodes):
            known.add(node)
    wanted = [node for node in recorded.graph.nodes if node in known and not known.issuperset(node.users)]
    prologue, body = Graph(), Graph()
    first: dict[Node, Node] = {}
    second: dict[Node, Node] = {}
    for node in inputs:
        into, copies = (prologue, first) if node in known else (body, second)
        copies[node] = into.placeholder(node.name)
    for node in wanted:
        second[node] = body.placeholder(f"known_{node.name}")
    for node in recorded.graph.nodes:
        if node.op == "output":
            body.node_copy(node, second.__getitem__)
        elif node.op != "placeholder":
            into, copies = (prologue, first) if node in known else (body, second)
            copies[node] = into.node_copy(node, copies.__getitem__)
    prologue.output([first[node] for node in wanted])
    prologue.eliminate_dead_code()
    return GraphModule(recorded, prologue), GraphModule(recorded, body)


def reuse_memory(graph: Graph) -> None:
    """Let elementwise operations write over an operand that nobody reads again.

    Fresh memory costs a page fault every 4 KiB, which for blocks of a megabyte is more than the arithmetic.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _IN_PLACE:
            continue
        in_place, commutes = _IN_PLACE[node.target]
        operands = [arg for arg in node.args[: 1 + commutes] if isinstance(arg, Node)]
        for operand in operands:
            if _same_form(operand, node) and _dies_at(operand, node, order):
                others = [arg for arg in node.args if arg is not operand]
                node.target, node.args = in_place, (operand, *others)
                break


def _dies_at(operand: Node, node: Node, order: dict[Node, int]) -> bool:
    """Whether this operand, or what it is a view of, is memory of the graph's own that has no later reader."""
    if operand.op != "call_function" or [arg for arg in node.args if arg is operand] != [operand]:
        return False
    for user in operand.users:
        if user is not node and (order[user] > order[node] or _is_view(user)):
            return False
    while _is_view(operand):
        base = operand.all_input_nodes[0]
        if base.op != "call_function" or len(base.users) > 1 or not _same_size(base, operand):
            return False
        operand = base
    return True


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


def _same_form(a: Node, b: Node) -> bool:
    first, second = a.meta.get("tensor_meta"), b.meta.get("tensor_meta")
    return (
        first is not None
        and second is not None
        and (first.shape, first.dtype, first.stride) == (second.shape, second.dtype, second.stride)
    )


def _same_size(a: Node, b: Node) -> bool:
    first, second = a.meta.get("tensor_meta"), b.meta.get("tensor_meta")
    return first is not None and second is not None and first.shape.numel() == second.shape.numel()


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
