"""Run a pure step through Pyro once, and its graph of tensor operations from then on.

Pyro's effect handlers cost a millisecond or more a step, whatever the data. A step here is a function of tensors
alone (parameters in, results out), so what it does to tensors can be recorded, handlers and all, and the graph is
then run, or compiled. Eager, traced and compiled are three ways to run one step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from ppl_gen.errors import FitError
from ppl_gen.program.capture import Replayed
from ppl_gen.program.folding import call_directly, fold, writes
from ppl_gen.program.graphs import split
from ppl_gen.program.inductor import compile_graph
from ppl_gen.program.memory import reuse_memory
from ppl_gen.program.piles import PerThread
from ppl_gen.program.recorded import Recorded
from ppl_gen.program.recording import record

log = logging.getLogger("ppl_gen")

How = Literal["auto", "eager", "traced", "compiled", "captured"]
LOWERINGS = ("auto", "eager", "traced", "compiled")  # on any device


@contextmanager
def pyro_scope(validate: bool = False) -> Iterator[None]:
    """Pyro with a parameter store of its own, and validation switched as asked; both are put back."""
    store = pyro.get_param_store()
    with pyro.validation_enabled(validate), store.scope():
        yield


CACHE_BYTES = 256 * 2**20  # of features and the like, kept by one lowered step
SMALL_WORK = 20_000_000  # multiplications of a step below which a second thread costs more than it brings


@contextmanager
def threads_for(work: float) -> Iterator[None]:
    """One thread for small steps, all of them for others; the count is put back."""
    before = torch.get_num_threads()
    if work < SMALL_WORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Lowered:
    """A pure step, lowered.

    Args:
        step: a function of nested dicts, lists and tuples of tensors, returning the same; the same work for
            every call with the same shapes: no `.item()`, no branch on a value.
        how: "eager" runs it as it is, "traced" its recorded graph, "compiled" that graph through inductor,
            "captured" what is compiled as one CUDA graph; "auto" is "traced", and, with a log line that says why,
            "eager" for a step that cannot be recorded.
        steady: positions of arguments that come back unchanged call after call, as the blocks of a data set do.
            What depends on them alone is computed once for each and kept, up to `CACHE_BYTES` in all; what
            depends on the others alone, once for a run of calls that share them, as an E-step's blocks do.
        eager_first: calls before a graph is recorded, which costs as much as dozens of cheap steps.

    One graph is kept for each set of input shapes; threads may call a traced one side by side. `compiled` falls
    back to the traced graph, with a log line, where there is no working compiler.

    Example:
        >>> double = Lowered(lambda state: {"x": 2 * state["x"]}, "traced")
        >>> double({"x": torch.ones(2)})
        {'x': tensor([2., 2.])}
    """

    def __init__(
        self, step: Callable[..., Any], how: How, *, steady: tuple[int, ...] = (), eager_first: int = 0
    ) -> None:
        self.step, self.how, self.steady = step, how, steady
        self._eager_left = eager_first
        self.executed: str = "traced" if how == "auto" else how
        self.cached = 0  # bytes
        self._graphs: dict[Any, _Lowering] = {}
        self._lock = Lock()
        self._known: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
        self._latest: tuple[_Lowering | None, list[Tensor], list[Tensor]] = (None, [], [])

    def __call__(self, *args: Any) -> Any:
        """One step."""
        if self.how == "eager" or self._eager_left > 0:
            self._eager_left -= 1
            return self._as_it_is(args)
        flat: list[Tensor] = []
        form = _leaves_into(flat, args)
        key = (form, *[(t.shape, t.stride(), t.dtype, t.device) for t in flat])
        recorded = self._graphs.get(key)
        if recorded is None:
            with self._lock:
                recorded = self._graphs.get(key) or self._lowered(args, flat, form)
                if recorded is None:
                    return self._as_it_is(args)  # one thread at a time: Pyro takes no more
                self._graphs[key] = recorded
        known = self._prologue(recorded, [flat[i] for i in recorded.steady])
        derived = self._interlude(recorded, [flat[i] for i in recorded.moving])
        return _formed(iter(recorded.body(*known, *derived)), recorded.result)

    def _prologue(self, recorded: _Lowering, steady: list[Tensor]) -> list[Tensor]:
        """What depends on the steady inputs alone, from the cache where it fits."""
        key = (id(recorded), *[id(t) for t in steady])
        if key in self._known:
            return self._known[key][1]
        known = recorded.prologue(*steady)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in known}
        given = {t.untyped_storage().data_ptr() for t in steady}
        size = sum(nbytes for memory, nbytes in storages.items() if memory not in given)
        with self._lock:
            if self.cached + size < CACHE_BYTES:
                self.cached += size
                self._known[key] = (steady, known)  # holding the inputs keeps their ids theirs
        return known

    def _interlude(self, recorded: _Lowering, moving: list[Tensor]) -> list[Tensor]:
        """What depends on the moving inputs alone; the latest is kept for the next block."""
        owner, inputs, derived = self._latest
        if owner is not recorded or any(a is not b for a, b in zip(inputs, moving, strict=True)):
            derived = recorded.interlude(*moving)
            self._latest = (recorded, moving, derived)
        return derived

    def _as_it_is(self, args: Any) -> Any:
        with pyro_scope():
            return self.step(*args)

    def _lowered(self, args: Any, flat: list[Tensor], form: Any) -> _Lowering | None:
        """The lowered graph; None where there can be none and the step may run as it is."""
        if self.how == "eager":  # another thread has found out meanwhile
            return None
        try:
            return self._lower(args, flat, form)
        except ValueError as error:
            refusal = _refusal(error)
            if refusal is None:
                raise
            if self.how != "auto":
                raise FitError(str(refusal)) from error  # without what Pyro adds to it
            log.warning("steps run eagerly, which is slower: %s", refusal)
            self.how = self.executed = "eager"
            return None

    def _lower(self, args: Any, flat: list[Tensor], form: Any) -> _Lowering:
        forms: list[Any] = []

        def flat_step(*leaves: Tensor) -> list[Tensor]:
            results: list[Tensor] = []
            forms.append(_leaves_into(results, self.step(*_formed(iter(leaves), form))))
            return results

        counts = [_leaves(arg) for arg in args]
        starts = [sum(counts[:position]) for position in range(len(counts))]
        body = trace(flat_step, flat)
        pure = not writes(body.graph)
        steady = [i for p in self.steady if pure for i in range(starts[p], starts[p] + counts[p])]
        moving = [i for i in range(len(flat)) if i not in steady]
        prologue: Callable[..., list[Tensor]] = _as_they_are
        interlude: Callable[..., list[Tensor]] = _as_they_are
        if steady:
            prologue, between, body = split(body, steady)
            fold(between)
            call_directly(between)
            interlude = between.written()
        run: Callable[..., list[Tensor]] = body
        if self.how in ("compiled", "captured"):
            known, derived = prologue(*[flat[i] for i in steady]), interlude(*[flat[i] for i in moving])
            run = compile_graph(body, [*known, *derived])
            self.executed = "traced" if run is body else "compiled"
        if run is body and pure:
            fold(body)
            run = PerThread(partial(_runnable, body))
        if self.how == "captured" and pure:
            run = Replayed(run, given_up=partial(setattr, self, "executed", self.executed))
            self.executed = "captured"
        return _Lowering(prologue, interlude, run, steady, moving, forms[-1])


def _refusal(error: BaseException | None) -> FitError | None:
    """What the recorder refused, which Pyro wraps in an error of its own; None where it was something else."""
    while error is not None and not isinstance(error, FitError):
        error = error.__cause__
    return error


def _runnable(body: Recorded) -> Callable[..., list[Tensor]]:
    """A copy of a graph with memory of its own."""
    own = body.copy()
    reuse_memory(own)
    call_directly(own)
    return own.written()


def _leaves_into(leaves: list[Tensor], tree: Any) -> Any:
    """Append the tensors of nested dicts, lists and tuples, and say their form: torch's pytree, but quick."""
    if isinstance(tree, Tensor):
        leaves.append(tree)
        return None
    if isinstance(tree, dict):
        return dict, tuple(tree), tuple([_leaves_into(leaves, part) for part in tree.values()])
    if isinstance(tree, (list, tuple)):
        return type(tree), None, tuple([_leaves_into(leaves, part) for part in tree])
    raise TypeError(
        f"a step takes and gives nested dicts, lists and tuples of tensors, not {type(tree).__name__}"
    )


def _leaves(tree: Any) -> int:
    found: list[Tensor] = []
    _leaves_into(found, tree)
    return len(found)


def _formed(leaves: Iterator[Tensor], form: Any) -> Any:
    """The inverse of `_leaves_into`."""
    if form is None:
        return next(leaves)
    kind, keys, parts = form
    values = [_formed(leaves, part) for part in parts]
    return dict(zip(keys, values, strict=True)) if kind is dict else kind(values)


def _as_they_are(*tensors: Tensor) -> list[Tensor]:
    return list(tensors)


@dataclass(frozen=True)
class _Lowering:
    """One lowered graph: `body(*prologue(*steady), *interlude(*moving))`, and the form of its results."""

    prologue: Callable[..., list[Tensor]]
    interlude: Callable[..., list[Tensor]]
    body: Callable[..., list[Tensor]]
    steady: list[int]
    moving: list[int]
    result: Any


def trace(flat_step: Callable[..., list[Tensor]], flat: list[Tensor]) -> Recorded:
    """Record a step on flat tensors; what two sites compute alike is computed once.

    Random draws made while recording are taken back, so that the next call draws what an eager one would have.
    """
    devices = [t.device for t in flat if t.is_cuda][:1]
    with pyro_scope(), torch.random.fork_rng(devices=devices):
        return record(flat_step, flat)
