"""Where a recorded step writes its results: over what nobody reads again, or where the call before wrote them.

Fresh memory costs a page fault every 4 KiB, which for blocks of a megabyte is more than the arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from ppl_gen.program.recorded import Recorded

_ATEN = torch.ops.aten
KEPT_NUMBERS = 4_096  # results from this size on are written where the call before wrote them
# Operation → the one with the same arguments and a place for its result.
_WITH_OUT = {
    _ATEN.mm.default: _ATEN.mm.out,
    _ATEN.bmm.default: _ATEN.bmm.out,
    _ATEN.add.Tensor: _ATEN.add.out,
    _ATEN.mul.Tensor: _ATEN.mul.out,
    _ATEN.sub.Tensor: _ATEN.sub.out,
    _ATEN.div.Tensor: _ATEN.div.out,
    _ATEN.exp.default: _ATEN.exp.out,
    _ATEN.log.default: _ATEN.log.out,
    _ATEN.clamp.default: _ATEN.clamp.out,
    _ATEN.amax.default: _ATEN.amax.out,
    _ATEN.sum.dim_IntList: _ATEN.sum.IntList_out,
    _ATEN.pow.Tensor_Scalar: _ATEN.pow.Tensor_Scalar_out,
}
# Operation → the one that writes over its first operand, and whether the operands may change places.
_IN_PLACE = {
    _ATEN.add.Tensor: (_ATEN.add_.Tensor, True),
    _ATEN.mul.Tensor: (_ATEN.mul_.Tensor, True),
    _ATEN.sub.Tensor: (_ATEN.sub_.Tensor, False),
    _ATEN.div.Tensor: (_ATEN.div_.Tensor, False),
    _ATEN.exp.default: (_ATEN.exp_.default, False),
}


def reuse_memory(recorded: Recorded) -> None:
    """Write stacked tables piece by piece into kept memory, then over dead operands, the rest into kept memory."""
    graph = recorded.graph
    returned = _reaching_output(graph)
    node: Any
    for node in list(graph.nodes):
        if node.target is _ATEN.cat.default and node not in returned and large(node):
            _write_pieces(recorded, node)
    _write_in_place(graph)
    returned = _reaching_output(graph)
    for node in list(graph.nodes):
        result = node.meta.get("tensor_meta")
        if node.target not in _WITH_OUT or node.kwargs or node in returned or not large(node):
            continue
        if all(arg.meta["tensor_meta"].dtype == result.dtype for arg in node.all_input_nodes):
            _write_to(recorded, node, torch.empty(result.shape, dtype=result.dtype, device=_device(node)))


def large(node: Node) -> bool:
    """Whether a node makes a contiguous tensor that is worth keeping memory for."""
    result: Any = node.meta.get("tensor_meta")
    return is_contiguous(result) and bool(result.shape.numel() >= KEPT_NUMBERS)


def is_contiguous(result: Any) -> bool:
    """Whether a node's result, as its "tensor_meta" tells of it, is one tensor without gaps, row by row."""
    if result is None:
        return False
    expected = 1
    for size, stride in zip(reversed(result.shape), reversed(result.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def filled_with(node: Any) -> float | None:
    """The one number that all entries are, or None."""
    return float(node.args[1]) if node.target is _ATEN.full.default else None


def _device(node: Node) -> torch.device:
    device: torch.device = node.meta["device"]
    return device


def _write_to(recorded: Recorded, node: Any, memory: torch.Tensor) -> None:
    with recorded.graph.inserting_before(node):
        node.kwargs = {"out": _kept(recorded, f"kept_{node.name}", memory)}
    node.target = _WITH_OUT[node.target]


def _kept(recorded: Recorded, name: str, memory: torch.Tensor) -> Node:
    """Memory of the graph's own as one of its nodes: held by the run itself."""
    name = f"{name}_held_{len(recorded.held)}"  # a piece of one stack may be called as another stack is
    recorded.held[name] = memory
    return recorded.graph.create_node("get_attr", name)


def _write_pieces(recorded: Recorded, stacked: Any) -> None:
    """A stack of rows, each piece computed right where it belongs; constant ones once and for all."""
    graph, pieces = recorded.graph, stacked.args[0]
    result = stacked.meta["tensor_meta"]
    forms = [piece.meta["tensor_meta"] for piece in pieces]
    same = all(form.dtype == result.dtype and form.shape[1:] == result.shape[1:] for form in forms)
    if (len(stacked.args) > 1 and stacked.args[1] != 0) or not same:
        return
    memory = torch.empty(result.shape, dtype=result.dtype, device=_device(stacked))
    start = 0
    for i, (piece, form) in enumerate(zip(pieces, forms, strict=True)):
        place = memory[start : start + form.shape[0]]
        start += form.shape[0]
        constant = filled_with(piece)
        if constant is not None:
            place.fill_(constant)
        elif piece.target in _WITH_OUT and not piece.kwargs and list(piece.users) == [stacked]:
            _write_to(recorded, piece, place)
        else:
            with graph.inserting_before(stacked):
                goal = _kept(recorded, f"kept_{stacked.name}_{i}", place)
                graph.call_function(_ATEN.copy_.default, (goal, piece))
    with graph.inserting_before(stacked):
        whole = _kept(recorded, f"kept_{stacked.name}", memory)
    whole.meta = stacked.meta
    stacked.replace_all_uses_with(whole)
    graph.erase_node(stacked)
    for piece in pieces:
        if filled_with(piece) is not None and not piece.users:
            graph.erase_node(piece)


def _reaching_output(graph: Graph) -> set[Node]:
    """The nodes whose memory a result of the graph may share."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    found: set[Node] = set()
    front = list(output.all_input_nodes)
    while front:
        node = front.pop()
        if node not in found:
            found.add(node)
            front.extend(node.all_input_nodes if is_view(node) else [])
    return found


def _write_in_place(graph: Graph) -> None:
    order = {node: position for position, node in enumerate(graph.nodes)}
    node: Any
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in _IN_PLACE:
            continue
        in_place, commutes = _IN_PLACE[node.target]
        operands = [arg for arg in node.args[: 1 + commutes] if isinstance(arg, Node)]
        for operand in operands:
            if same_form(operand, node) and _dies_at(operand, node, order):
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
            if user is not through and (order[user] > order[reader] or is_view(user)):
                return False
        if node.op != "call_function":
            return False
        if not is_view(node):
            return True
        base = node.all_input_nodes[0]
        if not _same_size(base, node):
            return False
        node, through = base, node


def is_view(node: Node) -> bool:
    """Whether a node's result may share memory with what it is made of."""
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(result.alias_info is not None for result in schema.returns)


def same_form(a: Node, b: Node) -> bool:
    """Whether two nodes make tensors of one shape, type and layout."""
    first, second = a.meta.get("tensor_meta"), b.meta.get("tensor_meta")
    return (
        first is not None
        and second is not None
        and (first.shape, first.dtype, first.stride) == (second.shape, second.dtype, second.stride)
    )


def _same_size(a: Node, b: Node) -> bool:
    first, second = a.meta.get("tensor_meta"), b.meta.get("tensor_meta")
    return first is not None and second is not None and first.shape.numel() == second.shape.numel()
