"""What every benchmark here shares: alternating runs, medians, and thread counts."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

THREADS = (1, 2)


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


def compare(
    script: str, arguments: list[str], sides: list[str], rounds: int
) -> tuple[dict[str, float], dict[str, str]]:
    """Each side's median seconds at its faster thread count, and what it printed beside them.

    Every measurement is a process of its own, `script … --side NAME --threads N`, so that no side meets the other's
    thread pools or heap; rounds alternate between the sides.
    """
    taken: dict[tuple[str, int], list[float]] = {(name, n): [] for name in sides for n in THREADS}
    said: dict[str, str] = {}
    for _ in range(rounds):
        for name, count in taken:
            command = [sys.executable, script, *arguments, "--side", name, "--threads", str(count)]
            environment = os.environ | {"OMP_NUM_THREADS": str(count)}
            run = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            elapsed, said[name] = run.stdout.strip().splitlines()[-1].split(maxsplit=1)
            taken[name, count].append(float(elapsed))
    for (name, count), values in taken.items():
        spread = f"{min(values):.3f} to {max(values):.3f}"
        print(f"{name:24} {count} thread(s)  median {statistics.median(values):.3f} s  ({spread})")
    best = {name: min(statistics.median(taken[name, n]) for n in THREADS) for name in sides}
    return best, said
