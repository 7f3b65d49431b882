"""What every benchmark here shares: alternating runs, medians, thread counts, and equal log-likelihoods."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from threadpoolctl import threadpool_limits

THREADS = (1, 2)
OURS = ("fit", "uncertified", "compiled", "together", "traced")
AT_HAND = (*OURS, "pyro", "torch")  # what runs in this very environment


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


def parser(
    description: str | None, sides: Sequence[str], *, default: Sequence[str] | None = None
) -> argparse.ArgumentParser:
    """The options every comparison takes; `--side` asks for one measurement, in this very process."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--sides", nargs="+", choices=sides, default=list(default or sides))
    made.add_argument("--peer-python", default=sys.executable, help="the interpreter that has the peers")
    made.add_argument("--thread-counts", nargs="+", type=int, default=list(THREADS))
    made.add_argument("--side", choices=sides, help="one measurement, in this process")
    made.add_argument("--threads", type=int, default=2, help="with --side")
    return made


def compare(
    script: str, arguments: Sequence[str], options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Each side's median seconds at its faster thread count, and what it printed beside them.

    Every measurement is a process of its own, `script … --side NAME --threads N`, so that no side meets the other's
    thread pools or heap, and a peer's may be another interpreter; rounds alternate between the sides.
    """
    taken: dict[tuple[str, int], list[float]] = {
        (name, n): [] for name in options.sides for n in options.thread_counts
    }
    said: dict[str, list[str]] = {}
    for _ in range(options.rounds):
        for name, count in taken:
            python = sys.executable if name in AT_HAND else options.peer_python
            words = measured(python, script, [*arguments, "--side", name, "--threads", str(count)])
            said[name] = words[1:]
            taken[name, count].append(float(words[0]))
    for (name, count), values in taken.items():
        spread = f"{min(values):.4g} to {max(values):.4g}"
        print(f"{name:24} {count} thread(s)  median {statistics.median(values):.4g} s  ({spread})")
    medians = {key: statistics.median(values) for key, values in taken.items()}
    for n in options.thread_counts if len(options.thread_counts) > 1 else ():
        print(f"{n} thread(s) each:")
        ratios({name: medians[name, n] for name in options.sides})
    print("each at its faster count:")
    return {name: min(medians[name, n] for n in options.thread_counts) for name in options.sides}, said


def measured(python: str, script: str, arguments: Sequence[str]) -> list[str]:
    """The words of the last line that a process of its own printed.

    It runs on as many processors as it has threads: XLA starts a thread for each, whatever the variables say.
    """
    count = arguments[list(arguments).index("--threads") + 1]
    run = subprocess.run(
        [python, script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": count},
        preexec_fn=partial(_confined, int(count)),
    )
    if run.returncode:
        raise SystemExit(f"{' '.join(run.args)} failed:\n{run.stderr}")
    return run.stdout.strip().splitlines()[-1].split()


def _confined(count: int) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def ratios(best: dict[str, float]) -> None:
    """Print how many times faster each of our sides is than each peer."""
    for own in [name for name in best if name in OURS]:
        for peer in [name for name in best if name not in OURS]:
            print(f"{own:12} against {peer}: {best[peer] / best[own]:.2f}x")


def agree(found: dict[str, float], within: float) -> None:
    """Print the sides' log-likelihoods, and stop where they differ by more than `within` nats."""
    for name, value in found.items():
        print(f"{name:24} log-likelihood {value:.9f}")
    apart = max(found.values()) - min(found.values())
    print(f"largest difference of log-likelihoods: {apart:.1e} nats, of {within:.1e} allowed")
    if not apart <= within:
        raise SystemExit("the sides did not end at the same log-likelihood: their times say nothing")
