"""Blocks of rows on several threads, each block whole on one of them.

torch's own threads split every operation and wait for each other after it: a thousand times a second, and on a
machine that is busy otherwise each time for as long as the slowest is kept waiting. Here they meet once an E-step.
Nor may torch's own run in between: for milliseconds after it has ended, an OpenMP thread holds its core and waits.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T")
PILES = 16  # of blocks, each summed in its own order: the sum does not depend on the number of threads


def piles(count: int) -> list[range]:
    """The numbers 0 to count − 1 in at most `PILES` runs, as equal as can be."""
    n = min(PILES, count)
    return [range(i * count // n, (i + 1) * count // n) for i in range(n)]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on the calling thread alone; the count is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Crew:
    """As many threads as torch has, the calling one among them; the others are kept for the next call.

    Example:
        >>> Crew().each(lambda pile: sum(pile), piles(20))[:3]
        [0, 1, 2]
    """

    def __init__(self) -> None:
        self._others: ThreadPoolExecutor | None = None
        self._size = 0

    def each(self, work: Callable[[range], T], over: Sequence[range]) -> list[T]:
        """What `work` gives for each pile, in their order; without gradients, one thread of torch to each."""
        threads = min(torch.get_num_threads(), len(over))
        if threads <= 1:
            return [work(pile) for pile in over]
        if self._others is None or self._size != threads:
            self._others = ThreadPoolExecutor(threads - 1, initializer=torch.set_num_threads, initargs=(1,))
            self._size = threads
        found: dict[int, T] = {}
        left = iter(range(len(over)))

        def share() -> None:
            with torch.no_grad():
                for i in left:  # each goes to whoever asks first
                    found[i] = work(over[i])

        with one_thread():
            helping = [self._others.submit(share) for _ in range(threads - 1)]
            try:
                share()
            finally:
                deque(left, maxlen=0)  # nobody begins another pile where this one failed
                wait(helping)
        for helper in helping:
            helper.result()
        return [found[i] for i in range(len(over))]


class PerThread:
    """A function that each thread gets a copy of its own of: what writes into kept memory is for one at a time."""

    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self._make, self._own, self._lock = make, threading.local(), threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """The calling thread's."""
        own = getattr(self._own, "run", None)
        if own is None:
            with self._lock:
                own = self._own.run = self._make()
        return own(*args)
