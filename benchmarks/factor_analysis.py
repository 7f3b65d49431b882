"""Factor analysis to one converged log-likelihood: against scikit-learn.

    python benchmarks/factor_analysis.py [--problems small long wide --rounds 3]

Each side stops by its own rule, at the loosest tolerance of 1e-2, 1e-3, … with which it ends within `--short` nats
a row of the best log-likelihood any side reaches at the tightest; those searches are not timed. Columns are
standardised for both: scikit-learn's start and its stopping rule depend on their units.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import numpy as np
from timing import OURS, compare, measured, parser, ratios, threads

SIDES = ("fit", "uncertified", "scikit-learn")
LADDER = tuple(10.0**-n for n in range(2, 11))
PROBLEMS = {
    "small": (178, 13, 2),
    "long": (100_000, 20, 4),
    "wide": (1_000, 100, 5),
}  # rows, columns, factors
MOST_STEPS = 5_000


def problem(name: str) -> tuple[np.ndarray, int]:
    """Standardised rows drawn from a factor model, and its number of factors."""
    rows, columns, factors = PROBLEMS[name]
    random = np.random.default_rng(0)
    loadings = random.normal(size=(factors, columns)) * random.uniform(0.2, 1.0, (1, columns))
    x = random.normal(size=(rows, factors)) @ loadings
    x += random.normal(size=x.shape) * random.uniform(0.5, 2.0, columns)
    return (x - x.mean(0)) / x.std(0), factors


def fitted(side: str, x: np.ndarray, factors: int, tol: float) -> Any:
    """One side to its tolerance: ours in nats a row, scikit-learn's in nats."""
    if side == "scikit-learn":
        from sklearn.decomposition import FactorAnalysis

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FactorAnalysis(factors, svd_method="lapack", tol=tol * len(x), max_iter=MOST_STEPS).fit(x)
    from ppl_gen import EM, Free, Linear, Normal, Spec, compile_spec, fit

    spec = Spec(model={"z": Normal(factors, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})
    if side == "fit":
        return fit(spec, {"x": x}, EM(tol=tol, max_steps=MOST_STEPS))
    import torch

    from ppl_gen.data.reading import read_table
    from ppl_gen.infer.linear_gaussian_run import run_linear_gaussian

    table = read_table({"x": x}, spec)
    program = compile_spec(spec, table.schema, dtype=torch.float64)
    return run_linear_gaussian(program, table, EM(tol=tol, max_steps=MOST_STEPS))


def main() -> None:
    """For each problem: the tolerances that serve, the log-likelihoods reached, times and ratios."""
    command = parser(__doc__, SIDES)
    command.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    command.add_argument("--short", type=float, default=1e-7)
    command.add_argument("--tol", type=float, help="with --side")
    options = command.parse_args()
    if options.side is not None:
        one_measurement(options)
        return
    for name in options.problems:
        print(
            f"-- {name}: {PROBLEMS[name][0]} rows, {PROBLEMS[name][1]} columns, {PROBLEMS[name][2]} factors"
        )
        same, best = [f"--problems={name}"], dict[str, float]()
        served, wanted = tolerances(same, options), options.sides
        for side in wanted:
            options.sides = [side]
            best |= compare(__file__, [*same, f"--tol={served[side]}"], options)[0]
        options.sides = wanted
        ratios(best)


def tolerances(same: list[str], options: Any) -> dict[str, float]:
    """Each side's loosest tolerance that ends within `--short` of the best log-likelihood."""

    def reached(side: str, tol: float) -> tuple[float, int]:
        python = sys.executable if side in OURS else options.peer_python
        words = measured(python, __file__, [*same, "--side", side, "--threads", "1", f"--tol={tol}"])
        return float(words[1]), int(words[2])

    rows = PROBLEMS[same[0].removeprefix("--problems=")][0]
    best = max(reached(side, LADDER[-1])[0] for side in options.sides)
    served = {}
    for side in options.sides:
        for tol in LADDER:
            value, steps = reached(side, tol)
            if value >= best - options.short * rows:
                print(
                    f"{side:24} tol {tol:.0e}: {steps} steps, {best - value:.1e} nats below the best {best:.6f}"
                )
                served[side] = tol
                break
        else:
            raise SystemExit(f"{side} ends more than {options.short} nats a row below {best:.6f}")
    return served


def one_measurement(options: Any) -> None:
    """Seconds, log-likelihood and steps of one side on one problem."""
    x, factors = problem(options.problems[0])
    with threads(options.threads):
        fitted(options.side, x[:200], factors, 1e-2)  # imports, and what the first call of a process loads
        begun = time.perf_counter()
        found = fitted(options.side, x, factors, options.tol)
        taken = time.perf_counter() - begun
    own = float(found.history[-1]) if hasattr(found, "history") else float(found.score(x)) * len(x)
    run = getattr(found, "run", found)
    print(taken, own, run.evaluations if hasattr(run, "evaluations") else found.n_iter_)


if __name__ == "__main__":
    main()
