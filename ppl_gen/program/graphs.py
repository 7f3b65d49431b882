"""What a recorded step computes twice, and what it computes again at every call though it never changes.

EM runs one step many times over the same rows. Their features, indicators and normalising constants never change,
and a traced graph shows which operations those are: the ones no parameter reaches.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree


def merge_equal(graph: Graph) -> None:
    """Let one node stand for all that apply the same operation to the same inputs, and drop what is unused.

    torch has such a pass, but with it comes the import of all of inductor: seconds at every start.
    """
    first: dict[object, Node] = {}
    for node in list(graph.nodes):
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


def _random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
