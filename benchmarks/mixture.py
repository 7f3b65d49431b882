"""A full-covariance mixture against scikit-learn: the same rows, starts, iterations and final log-likelihood.

    python benchmarks/mixture.py [--rows 100000 --dims 8 --classes 10 --steps 20 --rounds 5]

Both sides run whole: checking the array, starting, iterating, the final E-step; ours traces its steps as well.
`fit` also holds its result against the formulas; without that certificate both sides do the same work.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from timing import compare

from ppl_gen import EM, compile_spec, fit, gaussian_mixture
from ppl_gen.data.reading import read_table
from ppl_gen.infer.em import run_em


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


def main() -> None:
    """Print both sides' times, log-likelihoods and the ratio; then peak memory beyond the data."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 100_000), ("dims", 8), ("classes", 10), ("steps", 20), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true", help="measure peak memory only, in this process")
    options = parser.parse_args()
    x, start = problem(options.rows, options.dims, options.classes)
    spec = gaussian_mixture(options.classes)
    algorithm = EM(max_steps=options.steps, tol=0, init=start)
    found: dict[str, float] = {}

    def whole_fit() -> None:
        found["ppl_gen fit"] = fit(spec, x, algorithm).log_likelihood

    def uncertified() -> None:
        table = read_table(x, spec)
        program = compile_spec(spec, table.schema)
        found["ppl_gen, no certificate"] = run_em(program, table, algorithm).history[-1]

    if options.memory:
        fit(spec, x[:200], EM(max_steps=2, init=start))  # imports and tracing, on a few rows
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew at what is held now
        held = status_bytes("VmRSS")
        whole_fit()
        print(status_bytes("VmHWM") - held)
        return

    def scikit_learn() -> None:
        from sklearn.mixture import GaussianMixture

        mixture = GaussianMixture(
            options.classes,
            max_iter=options.steps,
            tol=0,
            reg_covar=0,
            weights_init=start["z"]["probs"],
            means_init=start["x"]["loc"],
            precisions_init=np.linalg.inv(start["x"]["cov"]),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the iterations are few on purpose
            mixture.fit(x)
        found["scikit-learn"] = float(mixture.score(x)) * len(x)

    whole_fit()  # the first call of a process imports the tracer
    sides = {"ppl_gen fit": whole_fit, "ppl_gen, no certificate": uncertified, "scikit-learn": scikit_learn}
    best = compare(sides, options.rounds)
    for name, value in found.items():
        print(f"{name:24} log-likelihood {value:.9f}")
        if name != "scikit-learn":
            difference = abs(value / found["scikit-learn"] - 1) if "scikit-learn" in found else float("nan")
            ratio = best["scikit-learn"] / best[name]
            print(f"{name:24} relative difference {difference:.1e}; ratio {ratio:.2f}x")
    sizes = [f"--{name}={getattr(options, name)}" for name in ("rows", "dims", "classes", "steps")]
    command = [sys.executable, __file__, *sizes, "--memory"]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"peak memory beyond imports and data: {peak / 2**20:.0f} MiB; the data: {x.nbytes / 2**20:.0f} MiB"
    )


def status_bytes(entry: str) -> int:
    """A line of this process' status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(entry))


if __name__ == "__main__":
    main()
