"""Write down the tensor operations of a step while it runs once: the graph that is then run in its place.

Everything below Pyro, autograd and vmap comes by here as plain operations on plain tensors, whatever Python led to
them. Each result carries its node of the graph with it and is let go as soon as the step lets go of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.passes.shape_prop import TensorMetadata
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_gen.errors import FitError
from ppl_gen.program.folding import writes
from ppl_gen.program.graphs import merge_equal
from ppl_gen.program.recorded import Recorded

_ATEN = torch.ops.aten
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)
_MARK = "_recorded_as"  # the attribute of a tensor that holds its recorder and node


def record(step: Callable[..., list[Tensor]], inputs: Sequence[Tensor]) -> Recorded:
    """The graph of a step from tensors to tensors, as it is on inputs of these shapes.

    Operations that are done twice alike are in it once. Each node's `meta` holds "tensor_meta" and "device" of its
    result.

    Args:
        step: the same operations on every call with the same shapes: random ones draw anew in the graph, numbers of
            Python's and captured tensors of one element are kept as they are now.
        inputs: what it is run on; they are not copied.

    Raises:
        FitError: it captured a tensor of more than one element, or read a tensor's value.

    Example:
        >>> graph = record(lambda x: [2 * x + 1], [torch.ones(2)])
        >>> graph(torch.zeros(2))
        [tensor([1., 1.])]
    """
    recorder = _Recorder()
    aliases = [recorder.input(f"arg{position}", own) for position, own in enumerate(inputs)]
    with recorder:
        results = step(*aliases)
    return recorder.finished(results)


class _Recorder(TorchDispatchMode):
    """Runs every operation as it is and adds it to a graph."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = Graph()
        self._held: dict[str, Tensor] = {}
        self._captured: dict[int, tuple[Tensor, Node]] = {}

    def input(self, name: str, tensor: Tensor) -> Tensor:
        """The same memory under a mark of its own: the step may have captured the tensor itself."""
        alias = tensor.detach()
        self._mark(alias, self.graph.placeholder(name))
        return alias

    def finished(self, results: Sequence[Tensor]) -> Recorded:
        """The graph that returns these results."""
        self.graph.output([self._node(result) for result in results])
        if not writes(self.graph):
            merge_equal(self.graph)
        return Recorded(self.graph, self._held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        del types
        kwargs = kwargs or {}
        written = self._written(args), {key: self._written(value) for key, value in kwargs.items()}
        if _reads_values(func, args):
            self._refuse_to_read(func, written)
        result = func(*args, **kwargs)
        if func is _ATEN.detach.default:  # nothing differentiates a recorded graph
            self._mark(result, written[0][0])
            return result
        node = self.graph.call_function(func, *written)
        if isinstance(result, Tensor):
            self._mark(result, node)
        elif isinstance(result, (tuple, list)):
            for position, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._mark(part, self.graph.call_function(operator.getitem, (node, position)))
        return result

    def _mark(self, tensor: Tensor, node: Node) -> None:
        """Hang the node on the tensor; an operation in place returns one that has an older mark."""
        setattr(tensor, _MARK, (self, node))
        if "device" not in node.meta:
            node.meta["device"] = tensor.device
            node.meta["tensor_meta"] = TensorMetadata(
                tensor.shape, tensor.dtype, False, tensor.stride(), None, False, {}
            )

    def _node(self, tensor: Tensor) -> Node:
        recorder, node = getattr(tensor, _MARK, (None, None))
        if recorder is self and isinstance(node, Node):
            return node
        if id(tensor) not in self._captured:
            self._captured[id(tensor)] = tensor, self._constant(tensor)  # held, so that the id stays its own
        return self._captured[id(tensor)][1]

    def _constant(self, tensor: Tensor) -> Node:
        name = f"captured_{len(self._captured)}"
        if tensor.numel() > 1:
            raise FitError(f"a step captured the tensor {name} of shape {tuple(tensor.shape)} as a constant")
        self._held[name] = tensor.detach()
        node = self.graph.create_node("get_attr", name)
        self._mark(tensor.detach(), node)
        return node

    def _written(self, arg: Any) -> Any:
        """An argument with nodes in the place of tensors."""
        if isinstance(arg, Tensor):
            return self._node(arg)
        if isinstance(arg, (tuple, list)):
            return type(arg)([self._written(part) for part in arg])
        return arg

    def _refuse_to_read(self, func: Any, written: Any) -> None:
        """A value may be read where it is the same at every call: where no input leads to it."""
        front, met = _nodes(written), set[Node]()
        while front:
            node = front.pop()
            if node.op == "placeholder" or torch.Tag.nondeterministic_seeded in getattr(
                node.target, "tags", ()
            ):
                raise FitError(
                    f"a step reads the value of a tensor ({func}), which a recorded step cannot: it is to do the "
                    "same operations whatever the values; use torch.where, or lowering='eager'"
                )
            front.extend(source for source in node.all_input_nodes if source not in met)
            met.update(node.all_input_nodes)


def _reads_values(func: Any, args: Any) -> bool:
    """Whether what comes out depends on values in more than its own values."""
    if func in _INDEXING:  # a mask's number of entries
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    tags = func.tags
    return torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags


def _nodes(written: Any) -> list[Node]:
    if isinstance(written, Node):
        return [written]
    if isinstance(written, dict):
        written = tuple(written.values())
    return [node for part in written for node in _nodes(part)] if isinstance(written, (tuple, list)) else []
