"""A graph of tensor operations, the tensors that it holds, and the code that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace

from torch import Tensor
from torch.fx import Graph

Run = Callable[..., list[Tensor]]


class Recorded:
    """A recorded step: a flat graph, tensors in and a list of tensors out, and what its `get_attr` nodes name.

    A `GraphModule` writes its code anew whenever a graph is put into one. Here that is done when the graph is first
    run, after all that is to become of it; graphs on their way to others are never written out.

    Example:
        >>> import torch
        >>> graph = Graph()
        >>> x, one = graph.placeholder("x"), graph.create_node("get_attr", "one")
        >>> end = graph.output([graph.call_function(torch.add, (x, one))])
        >>> Recorded(graph, {"one": torch.ones(2)})(torch.zeros(2))
        [tensor([1., 1.])]
    """

    def __init__(self, graph: Graph, held: Mapping[str, Tensor] | None = None) -> None:
        self.graph, self.held = graph, dict(held or {})
        self._run: Run | None = None

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """One run; the graph is as it was at the first."""
        if self._run is None:
            self._run = self.written()
        return self._run(*tensors)

    def written(self) -> Run:
        """The graph as it is now, as a function that knows the tensors held."""
        code = self.graph.python_code("self")
        names = dict(code.globals)
        exec(compile(code.src, "<recorded step>", "exec"), names)  # noqa: S102  (as GraphModule does)
        run: Run = partial(names["forward"], SimpleNamespace(**self.held))
        return run

    def copy(self) -> Recorded:
        """The same operations as nodes of their own, to be changed, or owned by a module, apart from these."""
        graph = Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return Recorded(graph, self.held)
