"""A recorded graph through inductor, kept on disk for the next process."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_gen.program.folding import writes
from ppl_gen.program.recorded import Recorded

log = logging.getLogger("ppl_gen")

# Noise as eager torch draws it. Each process would otherwise ask the compiler anew, in processes of its own, which
# vector instructions it can write: most of a second.
OPTIONS = {"fallback_random": True, "cpp.vec_isa_ok": True}


def compile_graph(recorded: Recorded, flat: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The graph through inductor, drawing its noise as eager torch does; as it is where that fails.

    Inductor takes the graph itself. `torch.compile` would first let Dynamo find it again, and ask at each call
    whether its inputs are still of the shapes that `Lowered` keeps a graph for.
    """
    devices = [t.device for t in flat if t.is_cuda][:1]
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), _quietly():
            own = recorded.copy()  # a module's graph is the module's, also where it is of no use in the end
            compiled = _compiled(GraphModule(own.held, own.graph), flat)
            if not writes(recorded.graph):
                compiled(*flat)
    except Exception as error:  # a missing compiler, an unwritable cache: the graph still runs
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        log.warning("inductor failed (%s); the traced step runs instead", reason)
        return recorded

    def run(*tensors: Tensor) -> list[Tensor]:
        try:
            return compiled(*tensors)
        except RuntimeError as error:  # C++ tells no kinds of errors apart
            told = str(error).partition("\n")[0]
            if told.startswith("linalg."):
                raise torch.linalg.LinAlgError(told) from error  # type: ignore[attr-defined]
            raise

    return run


@contextmanager
def _quietly() -> Iterator[None]:
    """Without inductor's own warnings, and its log of what C++ has to call by way of Python."""
    told = logging.getLogger("torch._inductor.ir")
    level = told.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these would end the compile where warnings are errors
        told.setLevel(logging.ERROR)
        try:
            yield
        finally:
            told.setLevel(level)


def _compiled(module: GraphModule, flat: list[Tensor]) -> Callable[..., list[Tensor]]:
    """The module for tensors of these shapes, from the disk where it has been compiled before.

    By itself torch keeps Dynamo's graphs alone. For others it must be asked to, and be given what Dynamo gives:
    a mode of tensors without data that knows of shapes. In it, all sizes are numbers.
    """
    from torch import _inductor as inductor  # here and not above: these take seconds
    from torch._functorch import config
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    mode = FakeTensorMode(shape_env=ShapeEnv())
    shapes: list[Any] = [mode.from_tensor(value, static_shapes=True) for value in flat]
    with config.patch(force_autograd_cache=True), tracing(TracingContext(mode)):
        # Kernels are called from C++, and not from Python, which costs two microseconds for each of them.
        options = OPTIONS | {"cpp_wrapper": all(value.device.type == "cpu" for value in flat)}
        compiled: Callable[..., list[Tensor]] = inductor.compile(module, shapes, options=options)
    return compiled
