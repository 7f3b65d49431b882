"""What every benchmark here shares: alternating runs, medians, thread counts, and a line to print."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

THREADS = (1, 2)
PAUSE = 0.5  # seconds before a run, in which the other side's idle threads stop spinning


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Both torch's pool and the BLAS pools of NumPy and SciPy at one size."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Each side's median seconds over rounds that alternate between them, at its faster thread count."""
    taken: dict[tuple[str, int], list[float]] = {(name, n): [] for name in sides for n in THREADS}
    for _ in range(rounds):
        for name, run in sides.items():
            for count in THREADS:
                time.sleep(PAUSE)
                with threads(count):
                    taken[name, count].append(seconds(run))
    medians = {key: statistics.median(values) for key, values in taken.items()}
    for (name, count), value in medians.items():
        spread = f"{min(taken[name, count]):.3f} to {max(taken[name, count]):.3f}"
        print(f"{name:24} {count} thread(s)  median {value:.3f} s  ({spread})")
    return {name: min(medians[name, count] for count in THREADS) for name in sides}
