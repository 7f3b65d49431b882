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
KEPT_NUMBERS = 16_384  # results from this size on are written where the call before wrote them
_WITH_OUT = {_ATEN.mm.default: _ATEN.mm.out, _ATEN.bmm.default: _ATEN.bmm.out}
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
        if node.op != "call_function" or _random(node) or _mutates(node) or _is_mutated(node):
            continue
        leaves, form = pytree.tree_flatten((node.args, node.kwargs))
        key = (node.target, str(form), tuple((type(leaf), leaf) for leaf in leaves))
        if key in first:
            node.replace_all_uses_with(first[key])
            graph.erase_node(node)
        else:
            first[key] = node
    graph.eliminate_dead_code()


def split(recorded: GraphModule, steady: Collection[int]) -> tuple[GraphModule, GraphModule, GraphModule]:
    """(prologue, interlude, body) with body(*prologue(*steady inputs), *interlude(*other inputs)) the whole.

    The prologue holds what depends on the steady inputs alone, the interlude what depends on the others alone;
    what depends on no input is computed in either.

    Args:
        recorded: a flat graph, tensors in and a list of tensors out.
        steady: positions of the inputs that stay the same from call to call.
    """
    inputs = [node for node in recorded.graph.nodes if node.op == "placeholder"]
    kept = {node for position, node in enumerate(inputs) if position in steady}
    moving = set(inputs) - kept
    constants = _closed_under(recorded.graph, set())
    early = _closed_under(recorded.graph, kept | constants)
    between = _closed_under(recorded.graph, moving | constants) - constants
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
    return first, second, GraphModule(recorded, body)


def _closed_under(graph: Graph, given: set[Node]) -> set[Node]:
    """The given nodes and all that can be computed from them, random and in-place operations left out."""
    found = set(given)
    for node in graph.nodes:
        changing = _random(node) or _mutates(node) or _is_mutated(node)
        if node.op == "call_function" and not changing and found.issuperset(node.all_input_nodes):
            found.add(node)
    return found


def _part(recorded: GraphModule, nodes: set[Node], wanted: list[Node]) -> tuple[GraphModule, list[Node]]:
    """A graph of its own from some nodes, returning the wanted ones."""
    part = Graph()
    copies: dict[Node, Node] = {}
    for node in recorded.graph.nodes:
        if node in nodes:
            is_input = node.op == "placeholder"
            copies[node] = (
                part.placeholder(node.name) if is_input else part.node_copy(node, copies.__getitem__)
            )
    part.output([copies[node] for node in wanted])
    part.eliminate_dead_code()
    return GraphModule(recorded, part), wanted


def reuse_memory(recorded: GraphModule) -> None:
    """Let matrix products write where they wrote before, and elementwise operations over what nobody reads again.

    Fresh memory costs a page fault every 4 KiB, which for blocks of a megabyte is more than the arithmetic.
    """
    graph = recorded.graph
    _write_in_place(graph)
    returned = _reaching_output(graph)
    for node in list(graph.nodes):
        result = node.meta.get("tensor_meta")
        if node.target not in _WITH_OUT or node in returned or result.shape.numel() < KEPT_NUMBERS:
            continue
        device = node.meta["val"].device
        recorded.register_buffer(
            f"kept_{node.name}", torch.empty(result.shape, dtype=result.dtype, device=device)
        )
        with graph.inserting_before(node):
            memory = graph.get_attr(f"kept_{node.name}")
        node.target, node.kwargs = _WITH_OUT[node.target], {"out": memory}
    recorded.recompile()


def _reaching_output(graph: Graph) -> set[Node]:
    """The nodes whose memory a result of the graph may share."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    found: set[Node] = set()
    front = list(output.all_input_nodes)
    while front:
        node = front.pop()
        if node not in found:
            found.add(node)
            front.extend(node.all_input_nodes if _is_view(node) else [])
    return found


def _write_in_place(graph: Graph) -> None:
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


def _dies_at(operand: Node, reader: Node, order: dict[Node, int]) -> bool:
    """Whether `reader` is the last to read this operand's memory, and that memory is the graph's own."""
    if [arg for arg in reader.args if arg is operand] != [operand]:
        return False
    node, through = operand, reader
    while True:  # down the views, to the operation that made the memory
        for user in node.users:
            if user is not through and (order[user] > order[reader] or _is_view(user)):
                return False
        if node.op != "call_function":
            return False
        if not _is_view(node):
            return True
        base = node.all_input_nodes[0]
        if not _same_size(base, node):
            return False
        node, through = base, node


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


def _is_mutated(node: Node) -> bool:
    return any(_mutates(user) for user in node.users)


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
