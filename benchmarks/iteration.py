"""One iteration of a running EM: when the rows double, and on a few rows against scikit-learn.

    python benchmarks/iteration.py --problem doubling [--rows 500000 --dims 8 --classes 10]
    python benchmarks/iteration.py --problem small    [--peer-python PATH]

An iteration's time is the difference of a long and a short run from one start, divided by the difference
of their iterations: what happens once (checks, recording, certificate) drops out. Small: Old Faithful, 272×2, K=3.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import sides
from problems import Rows, Start, clusters, faithful, start_at
from timing import compare, parser, ratios, threads

SIDES = ("uncertified", "scikit-learn")
LENGTHS = {
    "doubling": (4, 24),
    "small": (80, 280),
}  # past the M-steps that are run eagerly, and the recording
REPEATS = 5  # pairs of a long and a short run in one process


def fitted(side: str, x: Rows, start: Start, steps: int) -> Any:
    """One side on these rows, this many iterations."""
    classes = len(start["z"]["probs"])
    if side == "scikit-learn":
        return sides.scikit_learn(x, classes, start, max_iter=steps, tol=0)
    from ppl_gen import gaussian_mixture

    return sides.uncertified(gaussian_mixture(classes), x, sides.plain_em(max_steps=steps, tol=0, init=start))


def iteration(side: str, x: Rows, start: Start, lengths: tuple[int, int]) -> float:
    """Seconds of one iteration: the median over pairs of runs."""
    values = []
    for _ in range(REPEATS):
        taken, done = [], []
        for steps in lengths:
            begun = time.perf_counter()
            found = fitted(side, x, start, steps)
            taken.append(time.perf_counter() - begun)
            done.append(found.n_iter_ if hasattr(found, "n_iter_") else len(found.history) - 1)
        values.append((taken[1] - taken[0]) / (done[1] - done[0]))
    return statistics.median(values)


def main() -> None:
    """Print the seconds of an iteration and their ratio."""
    command = parser(__doc__, SIDES)
    command.add_argument("--problem", choices=list(LENGTHS), default="small")
    command.add_argument("--rows", type=int, default=500_000)
    command.add_argument("--dims", type=int, default=8)
    command.add_argument("--classes", type=int, default=10)
    options = command.parse_args()
    sizes = [f"--dims={options.dims}", f"--classes={options.classes}", f"--problem={options.problem}"]
    if options.side is not None:
        one_measurement(options)
    elif options.problem == "small":
        ratios(compare(__file__, sizes, options)[0])
    else:
        options.sides = ["uncertified"]
        once, twice = (
            compare(__file__, [*sizes, f"--rows={rows}"], options)[0]["uncertified"]
            for rows in (options.rows, 2 * options.rows)
        )
        print(f"{options.rows} rows to {2 * options.rows}: {twice / once:.3f}x")


def one_measurement(options: Any) -> None:
    """Seconds of an iteration of one side."""
    if options.problem == "small":
        x = faithful()
        start = start_at(x, x[[0, 1, 5]])
    else:
        x, start = clusters(options.rows, options.dims, options.classes)
    with threads(options.threads):
        fitted(options.side, x[: 2_000 + 20 * options.dims * options.classes], start, 2)
        print(iteration(options.side, x, start, LENGTHS[options.problem]))


if __name__ == "__main__":
    main()
