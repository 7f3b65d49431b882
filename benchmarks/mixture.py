"""A mixture against its peers: the same rows, start, iterations and final log-likelihood, in float64.

    python benchmarks/mixture.py [--rows 100000 --dims 8 --classes 10 --steps 20 --covariance full]
                                 [--rounds 5 --sides fit scikit-learn pomegranate --peer-python PATH]

All sides run whole: checking the array, starting, iterating, and for ours and scikit-learn a final E-step; ours
records its steps as well. `fit` also holds its result against the formulas; `uncertified` does its peers' work.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import sides
from problems import Rows, Start, clusters
from timing import agree, compare, parser, ratios, threads

SIDES = ("fit", "uncertified", "scikit-learn", "pomegranate", "memory")
SIZES = {"rows": 100_000, "dims": 8, "classes": 10, "steps": 20}
WITHIN = 1e-8  # nats a row by which final log-likelihoods may differ: what is left of raw second moments


def fitted(side: str, x: Rows, start: Start, steps: int) -> Any:
    """One side on these rows from this start."""
    classes = len(start["z"]["probs"])
    if side == "scikit-learn":
        return sides.scikit_learn(x, classes, start, max_iter=steps, tol=0)
    if side == "pomegranate":
        return sides.pomegranate(x, start, steps)
    from ppl_gen import fit, gaussian_mixture

    spec = gaussian_mixture(classes, "full" if "cov" in start["x"] else "diagonal")
    algorithm = sides.plain_em(max_steps=steps, tol=0, init=start)
    return (fit if side == "fit" else sides.uncertified)(spec, x, algorithm)


def main() -> None:
    """Print every side's times, log-likelihoods and the ratios; then peak memory beyond the data."""
    command = parser(__doc__, SIDES, default=SIDES[:3])
    for name, value in SIZES.items():
        command.add_argument(f"--{name}", type=int, default=value)
    command.add_argument("--covariance", choices=["full", "diagonal"], default="full")
    options = command.parse_args()
    same = [f"--{name}={getattr(options, name)}" for name in (*SIZES, "covariance")]
    if options.side is None:
        best, said = compare(__file__, same, options)
        agree({name: float(words[0]) for name, words in said.items()}, WITHIN * options.rows)
        ratios(best)
        memory = [sys.executable, __file__, *same, "--side", "memory"]
        print(subprocess.run(memory, check=True, capture_output=True, text=True).stdout.strip())
        return
    x, start = clusters(options.rows, options.dims, options.classes, options.covariance)
    few = 20 * options.classes * options.dims + 1_000
    with threads(options.threads):
        if options.side == "memory":
            print_peak(x, start, options.steps, few)
            return
        fitted(options.side, x[:few], start, 2)  # imports, and whatever the first call of a process loads
        begun = time.perf_counter()
        found = fitted(options.side, x, start, options.steps)
        taken = time.perf_counter() - begun
    print(taken, sides.log_likelihood(found, x))


def print_peak(x: Rows, start: Start, steps: int, few: int) -> None:
    """What a fit adds to the memory of a process that holds the data and has fitted a few rows."""
    fitted("fit", x[:few], start, 2)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew at what is held now
    held = status_bytes("VmRSS")
    fitted("fit", x, start, steps)
    peak = (status_bytes("VmHWM") - held) / 2**20
    print(f"peak memory beyond imports and data: {peak:.0f} MiB; the data: {x.nbytes / 2**20:.0f} MiB")


def status_bytes(entry: str) -> int:
    """A line of this process' status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


if __name__ == "__main__":
    main()
