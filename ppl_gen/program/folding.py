"""Make a recorded graph of small tensors cheap to call: the operations themselves cost next to nothing there.

What depends on no input is computed now; what turns out to change nothing is left out; views of views are one view;
and each operation is called by torch's own binding, which takes half the time of the operator it was recorded as.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node, map_arg

from ppl_gen.program.memory import is_contiguous, same_form
from ppl_gen.program.recorded import Recorded

_ATEN = torch.ops.aten
MOST_NUMBERS = 4_096  # that one constant may hold
_SHAPED_ALIKE = {  # of their first operand these need the shape alone
    _ATEN.zeros_like.default,
    _ATEN.ones_like.default,
    _ATEN.full_like.default,
    _ATEN.new_zeros.default,
    _ATEN.new_ones.default,
    _ATEN.new_full.default,
}
_VIEWS = {  # of all that their operand holds
    _ATEN.view.default,
    _ATEN._unsafe_view.default,
    _ATEN.unsqueeze.default,
    _ATEN.squeeze.dim,
    _ATEN.squeeze.dims,
    _ATEN.squeeze.default,
    _ATEN.expand.default,
    _ATEN.permute.default,
    _ATEN.transpose.int,
}
# Bindings that take the arguments of the recorded operator as they are; the rest stay operators.
_FUNCTIONS = {
    "abs", "add", "all", "amax", "amin", "any", "bernoulli", "bitwise_and", "bitwise_not", "bitwise_or",
    "bmm", "cat", "clamp", "cos", "cumsum", "diag_embed", "diagonal", "digamma", "div", "eq", "exp",
    "expm1", "floor", "gather", "ge", "gt", "index_copy", "index_select", "isfinite", "isnan", "le",
    "lerp", "lgamma", "log", "log1p", "logical_and", "logical_not", "logical_or", "logsumexp", "lt",
    "maximum", "mean", "minimum", "mm", "mul", "ne", "neg", "permute", "pow", "reciprocal", "relu",
    "rsqrt", "select", "sigmoid", "sign", "sin", "split_with_sizes", "sqrt", "squeeze", "stack", "sub",
    "sum", "t", "tanh", "transpose", "tril", "triu", "unbind", "unsqueeze", "where",
}  # fmt: skip
_METHODS = {"add_", "copy_", "div_", "exp_", "expand", "mul_", "sub_", "view"}
_LINALG = {
    _ATEN.linalg_solve_triangular.default: torch.linalg.solve_triangular,
    _ATEN.linalg_cholesky_ex.default: torch.linalg.cholesky_ex,
}


def writes(graph: Graph) -> bool:
    """Whether the step wrote over tensors; what else shares their memory is then anybody's guess."""
    schemas = (getattr(node.target, "_schema", None) for node in graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def fold(recorded: Recorded) -> None:
    """Constants, identities and chains of views; the results' bits stay as they are."""
    graph = recorded.graph
    constants = _constants(recorded)
    for node in list(graph.nodes):
        replacement = _simpler(node, constants)
        if replacement is not None:
            node.replace_all_uses_with(replacement)
    for node in list(graph.nodes):
        if node in constants and any(user not in constants for user in node.users):
            with graph.inserting_before(node):
                name = f"constant_{node.name}"
                recorded.held[name] = constants[node]
                kept = graph.create_node("get_attr", name)
            kept.meta = node.meta
            node.replace_all_uses_with(kept)
    graph.eliminate_dead_code()


def call_directly(recorded: Recorded) -> None:
    """Torch's own bindings in the place of operators: the same kernels, found faster."""
    for node in recorded.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _LINALG:
            node.target = _LINALG[node.target]
            continue
        schema = getattr(node.target, "_schema", None)
        name = "" if schema is None else schema.name.removeprefix("aten::")
        if name in _FUNCTIONS:
            node.target = getattr(torch, name)
        elif name in _METHODS and "out" not in node.kwargs:
            node.op, node.target = "call_method", name


def _constants(recorded: Recorded) -> dict[Node, Any]:
    """The values of the nodes that no input and no chance leads to, none of them a result of the graph."""
    found: dict[Node, Any] = {}
    node: Any
    for node in recorded.graph.nodes:
        if node.op == "get_attr":
            found[node] = recorded.held[str(node.target)]
            continue
        if node.op != "call_function" or any(user.op == "output" for user in node.users):
            continue
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            continue
        meta = node.meta.get("tensor_meta")
        if meta is not None and meta.shape.numel() > MOST_NUMBERS:
            continue
        if node.target in _SHAPED_ALIKE:
            found[node] = _of_shape_alone(node)
        elif all(source in found for source in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
            found[node] = node.target(*args, **kwargs)
    return found


def _of_shape_alone(node: Any) -> Any:
    like = node.args[0].meta["tensor_meta"]
    blank = torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=node.meta["device"])
    return node.target(blank, *node.args[1:], **node.kwargs)


def _simpler(node: Any, constants: dict[Node, Any]) -> Node | None:
    """What may stand for a node, or None."""
    if node in constants or node.op != "call_function":
        return None
    if node.target in _VIEWS:
        return _shorter(node)
    if node.target is _ATEN.index_select.default and same_form(node, node.args[0]):
        index = constants.get(node.args[2])
        if index is not None and torch.equal(index, torch.arange(len(index), device=index.device)):
            return _unless_result(node, node.args[0])
    if node.target is _ATEN.where.self:
        which = constants.get(node.args[0])
        for value, chosen in ((True, node.args[1]), (False, node.args[2])):
            if isinstance(which, Tensor) and bool((which == value).all()) and same_form(node, chosen):
                return _unless_result(node, chosen)
    return None


def _shorter(node: Any) -> Node | None:
    """A view from the beginning of its chain of views."""
    chain = [node.args[0]]
    while chain[-1].target in _VIEWS:
        chain.append(chain[-1].args[0])
    base: Node
    for base in reversed(chain):
        if same_form(base, node):
            return base
        goal, source = node.meta.get("tensor_meta"), base.meta.get("tensor_meta")
        same_size = source is not None and goal is not None and source.shape.numel() == goal.shape.numel()
        if not (same_size and is_contiguous(source) and _plain(goal)):
            continue
        if base is chain[0] and node.target is _ATEN.view.default:
            return None
        with node.graph.inserting_before(node):
            short = node.graph.call_function(_ATEN.view.default, (base, list(goal.shape)))
        short.meta = node.meta
        return short
    return None


def _plain(result: Any) -> bool:
    """Whether a result has the very strides that `view` gives."""
    return result is not None and result.stride == torch.empty(result.shape, device="meta").stride()


def _unless_result(node: Node, other: Node) -> Node | None:
    """Another node in the place of one that made memory of its own, which whoever gets a result counts on."""
    front, met = list(node.users), set[Node]()
    while front:
        user = front.pop()
        if user.op == "output":
            return None
        if user.target in _VIEWS and user not in met:
            met.add(user)
            front.extend(user.users)
    return other
