"""Run a pure step through Pyro once, and its graph of tensor operations from then on.

Pyro's effect handlers cost a millisecond or more a step, whatever the data. A step here is a function of tensors
alone (parameters in, results out), so `make_fx` can record what it does to tensors, handlers and all, and the
recorded graph is then run, or compiled. Eager, traced and compiled are three ways to run one step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ppl_gen.errors import FitError

log = logging.getLogger("ppl_gen")

How = Literal["eager", "traced", "compiled"]
LOWERINGS = ("auto", "eager", "traced", "compiled")


@contextmanager
def pyro_scope(validate: bool = False) -> Iterator[None]:
    """Pyro with a parameter store of its own, and validation switched as asked; both are put back."""
    store = pyro.get_param_store()
    with pyro.validation_enabled(validate), store.scope():
        yield


class Lowered:
    """A pure step, lowered.

    Args:
        step: a function of nested dicts, lists and tuples of tensors, returning the same; the same work for
            every call with the same shapes: no `.item()`, no branch on a value.
        how: "eager" runs it as it is, "traced" its recorded graph, "compiled" that graph through inductor.

    One graph is kept for each set of input shapes, so a ragged last block gets its own. `compiled` falls back to
    the traced graph, with a log line, where there is no working compiler.

    Example:
        >>> double = Lowered(lambda state: {"x": 2 * state["x"]}, "traced")
        >>> double({"x": torch.ones(2)})
        {'x': tensor([2., 2.])}
    """

    def __init__(self, step: Callable[..., Any], how: How) -> None:
        self.step, self.how = step, how
        self._graphs: dict[Any, Callable[..., list[Tensor]]] = {}
        self._forms: dict[Any, pytree.TreeSpec] = {}

    def __call__(self, *args: Any) -> Any:
        """One step."""
        if self.how == "eager":
            with pyro_scope():
                return self.step(*args)
        flat, form = pytree.tree_flatten(args)
        key = tuple((t.shape, t.stride(), t.dtype, t.device) for t in flat)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._lower(flat, form, key)
        return pytree.tree_unflatten(graph(*flat), self._forms[key])

    def _lower(self, flat: list[Tensor], form: pytree.TreeSpec, key: Any) -> Callable[..., list[Tensor]]:
        def flat_step(*leaves: Tensor) -> list[Tensor]:
            results, self._forms[key] = pytree.tree_flatten(self.step(*pytree.tree_unflatten(leaves, form)))
            return results

        graph: Callable[..., list[Tensor]] = trace(flat_step, flat)
        if self.how == "compiled":
            graph = compile_graph(graph, flat)
        self._graphs[key] = graph
        return graph


def trace(flat_step: Callable[..., list[Tensor]], flat: list[Tensor]) -> GraphModule:
    """Record a step on flat tensors; what two sites compute alike is computed once.

    Random draws made while recording are taken back, so that the next call draws what an eager one would have.
    """
    devices = [t.device for t in flat if t.is_cuda]
    with pyro_scope(), torch.random.fork_rng(devices=devices):
        recorded = make_fx(flat_step)(*flat)
    for name, constant in recorded.named_buffers():
        if constant.numel() > 1:
            raise FitError(f"a step captured the tensor {name} of shape {tuple(constant.shape)} as a constant")
    recorded.graph = fx_graph_cse(recorded.graph)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    return recorded


def compile_graph(recorded: GraphModule, flat: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The graph through inductor, drawing its noise as eager torch does; as it is where that fails."""
    compiled = torch.compile(recorded, fullgraph=True, dynamic=False, options={"fallback_random": True})
    try:
        with torch.random.fork_rng():
            compiled(*[t.clone() for t in flat])
    except Exception as error:  # a missing compiler, an unwritable cache: whatever it is, the graph still runs
        log.warning("torch.compile failed (%s); the traced step runs instead", str(error).splitlines()[0])
        return recorded
    return compiled
