"""Tasks side by side, in processes: Pyro is not thread-safe.

A process of its own costs seconds, for it imports torch and Pyro anew. Where the number of processes is left
open, the first task is therefore run here and timed, and others are started only if they win that time back.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol

import torch

from ppl_gen.errors import FitError
from ppl_gen.infer.status import Interrupt, interruptible

log = logging.getLogger("ppl_gen.selecting")

STARTUP = 6.0  # seconds until a new process has imported everything and is warm
WORTH = 0.8  # share of the time alone that several processes may take, to be taken
POLL = 0.2  # seconds between looks at Ctrl-C


class Result(Protocol):
    """What a task returns says whether Ctrl-C cut it short."""

    @property
    def stopped(self) -> bool:
        """Whether it did."""
        ...


Task = Callable[..., Any]  # a function of a module: (shared, *arguments) → Result


class Workers:
    """Runs tasks here or in processes; the results are the same, for each runs on one thread of torch.

    Args:
        count: processes; None: as many as repay it.
        shared: the first argument of every task, sent once to each process.

    """

    def __init__(self, count: int | None, shared: Any) -> None:
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise FitError(f"workers must be a whole number from 1, not {count!r}")
        self.count, self.shared = count, shared
        self.interrupted = False
        self._executor: ProcessPoolExecutor | None = None
        self._threads = torch.get_num_threads()

    def __enter__(self) -> Workers:
        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads)
        if self._executor is not None:
            self._executor.shutdown(wait=kind is None, cancel_futures=True)

    def map(self, function: Task, tasks: Sequence[tuple[Any, ...]], what: str) -> list[Any]:
        """function(shared, *task) of every task, in order; None for each that Ctrl-C left undone."""
        results: list[Any] = [None] * len(tasks)
        seconds: list[float] = []
        with interruptible() as interrupt:
            for position, task in enumerate(tasks):
                if self.interrupted or interrupt:
                    break
                if self._side_by_side(len(tasks) - position, seconds, what):
                    rest = self._spread(function, tasks[position:], interrupt)
                    if rest is not None:
                        results[position:] = rest
                        break
                began = time.perf_counter()
                results[position] = function(self.shared, *task)
                seconds.append(time.perf_counter() - began)
                self.interrupted = self.interrupted or results[position].stopped
            self.interrupted = self.interrupted or bool(interrupt)
        return results

    def _side_by_side(self, left: int, seconds: Sequence[float], what: str) -> bool:
        """Whether to go on in processes, opening them where that is decided now."""
        if self._executor is not None:
            return True
        cores = _cores() if self.count is None else self.count
        wanted = min(cores, left)
        if wanted < 2 or (self.count is None and not seconds):
            return False
        if self.count is None:
            each = min(seconds)  # the first one of all also warms torch up
            alone, together = left * each, STARTUP + math.ceil(left / wanted) * each
            if together > WORTH * alone:
                if len(seconds) == 1:
                    log.info("%s: %d more at %.1f s each, in this process", what, left, each)
                return False
            log.info("%s: %d more at %.1f s each, in %d processes", what, left, each, wanted)
        return self._open(cores)

    def _open(self, count: int) -> bool:
        try:
            pickle.dumps(self.shared)
        except Exception as error:  # whatever it is that cannot be sent, the work can be done here
            log.info("in this process: what the tasks share cannot be sent to others (%s)", error)
            self.count = 1
            return False
        self._executor = ProcessPoolExecutor(
            count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(self.shared,)
        )
        return True

    def _spread(
        self, function: Task, tasks: Sequence[tuple[Any, ...]], interrupt: Interrupt
    ) -> list[Any] | None:
        """The results of the processes; None where they cannot work, and it has to be done here."""
        assert self._executor is not None
        try:
            with _script_left_alone():
                futures = [self._executor.submit(_run, function, task) for task in tasks]
            return self._gathered(futures, interrupt)
        except BrokenProcessPool as error:
            log.warning("a process ended before its work was done (%s); it is done in this one", error)
            self._executor.shutdown(cancel_futures=True)
            self._executor, self.count = None, 1
            return None

    def _gathered(self, futures: list[Future[Any]], interrupt: Interrupt) -> list[Any]:
        pending = set(futures)
        while pending and not (interrupt or self.interrupted):
            done, pending = wait(pending, timeout=POLL, return_when=FIRST_COMPLETED)
            self.interrupted = any(future.result().stopped for future in done)
        for future in pending:  # those that have begun end soon: a terminal's Ctrl-C reaches them too
            future.cancel()
        return [None if future.cancelled() else future.result() for future in futures]


_SHARED: list[Any] = []  # of a worker process, which serves one selection and ends with it


def _begin(shared: Any) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between tasks; within one, the fit answers Ctrl-C itself
    _SHARED.append(shared)


def _run(function: Task, task: tuple[Any, ...]) -> Any:
    return function(_SHARED[0], *task)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _script_left_alone() -> Iterator[None]:
    """Start processes that do not run the user's script.

    A spawned process runs the file of `__main__` again, which in a script without an `if __name__` guard would
    select all over. Our tasks need nothing that is defined there, so they are not told where it is.
    """
    main = sys.modules["__main__"]
    place: dict[str, Any] = vars(main)
    hidden: dict[str, Any] = {name: place[name] for name in ("__file__", "__spec__") if name in place}
    place.pop("__file__", None)
    place["__spec__"] = None
    try:
        yield
    finally:
        place.update(hidden)
