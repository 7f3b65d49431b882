"""A full-covariance mixture against scikit-learn: the same rows, starts, iterations and final log-likelihood.

    python benchmarks/mixture.py [--rows 100000 --dims 8 --classes 10 --steps 20 --rounds 5]

Both sides run whole: checking the array, starting, iterating, the final E-step; ours traces its steps as well.
`fit` also holds its result against the formulas; `uncertified` does the same work as scikit-learn.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from timing import compare, threads

from ppl_gen import EM, compile_spec, fit, gaussian_mixture
from ppl_gen.data.reading import read_table
from ppl_gen.infer.em import run_em

SIDES = ("fit", "uncertified", "scikit-learn")


def problem(rows: int, dims: int, classes: int) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]:
    """Overlapping components with covariances of their own, and a start that both sides share."""
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(classes, dims))
    factors = np.eye(dims) + 0.3 * random.normal(size=(classes, dims, dims))
    labels = random.integers(classes, size=rows)
    x = np.empty((rows, dims))
    for k in range(classes):
        own = labels == k
        x[own] = centres[k] + random.normal(size=(own.sum(), dims)) @ factors[k].T
    start = {
        "z": {"probs": np.full(classes, 1 / classes)},
        "x": {
            "loc": x[random.choice(rows, classes, replace=False)],
            "cov": np.stack([np.cov(x.T)] * classes),
        },
    }
    return x, start


def run_side(side: str, x: np.ndarray, start: dict[str, dict[str, np.ndarray]], steps: int) -> float:
    """One side on these rows from this start; its final log-likelihood."""
    classes = len(start["z"]["probs"])
    spec, algorithm = gaussian_mixture(classes), EM(max_steps=steps, tol=0, init=start)
    if side == "fit":
        return fit(spec, x, algorithm).log_likelihood
    if side == "uncertified":
        table = read_table(x, spec)
        return run_em(compile_spec(spec, table.schema), table, algorithm).history[-1]
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        classes,
        max_iter=steps,
        tol=0,
        reg_covar=0,
        weights_init=start["z"]["probs"],
        means_init=start["x"]["loc"],
        precisions_init=np.linalg.inv(start["x"]["cov"]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the iterations are few on purpose
        mixture.fit(x)
    return float(mixture.score(x)) * len(x)


def main() -> None:
    """Print both sides' times, log-likelihoods and the ratio; then peak memory beyond the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"rows": 100_000, "dims": 8, "classes": 10, "steps": 20}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=[*SIDES, "memory"], help="one measurement, in this process")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    same = [f"--{name}={getattr(options, name)}" for name in sizes]
    if options.side is None:
        best, said = compare(__file__, same, list(SIDES), options.rounds)
        report(best, {name: float(value) for name, value in said.items()})
        memory = [sys.executable, __file__, *same, "--side", "memory"]
        print(subprocess.run(memory, check=True, capture_output=True, text=True).stdout.strip())
        return
    x, start = problem(options.rows, options.dims, options.classes)
    with threads(options.threads):
        if options.side == "memory":
            print_peak(x, start, options.steps)
            return
        run_side(options.side, x[:2_000], start, 2)  # imports, and whatever the first call of a process loads
        begun = time.perf_counter()
        found = run_side(options.side, x, start, options.steps)
        print(time.perf_counter() - begun, found)


def report(best: dict[str, float], found: dict[str, float]) -> None:
    """The log-likelihoods, and each of our sides against scikit-learn."""
    for name, value in found.items():
        print(f"{name:24} log-likelihood {value:.9f}")
    for name in ("fit", "uncertified"):
        difference = abs(found[name] / found["scikit-learn"] - 1)
        ratio = best["scikit-learn"] / best[name]
        print(f"{name:24} against scikit-learn: {ratio:.2f}x, relative difference {difference:.1e}")


def print_peak(x: np.ndarray, start: dict[str, dict[str, np.ndarray]], steps: int) -> None:
    """What a fit adds to the memory of a process that holds the data and has fitted a few rows."""
    run_side("fit", x[:2_000], start, 2)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew at what is held now
    held = status_bytes("VmRSS")
    run_side("fit", x, start, steps)
    peak = (status_bytes("VmHWM") - held) / 2**20
    print(f"peak memory beyond imports and data: {peak:.0f} MiB; the data: {x.nbytes / 2**20:.0f} MiB")


def status_bytes(entry: str) -> int:
    """A line of this process' status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


if __name__ == "__main__":
    main()
