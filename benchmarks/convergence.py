"""Badly separated mixtures, to one converged log-likelihood: against scikit-learn.

    python benchmarks/convergence.py [--rows 20000 --short 1e-7 --rounds 3]

Where classes overlap, EM crawls, and a small step does not mean that little is left. So each side stops by its own
rule, at the loosest tolerance of 1e-4, 1e-5, … with which it ends within `--short` nats a row of the best
log-likelihood any side reaches at the tightest; those searches are not timed. One start for all, full covariances.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import sides
from problems import BADLY_SEPARATED, Rows, Start
from timing import OURS, compare, measured, parser, ratios, threads

SIDES = ("fit", "uncertified", "scikit-learn")
LADDER = tuple(10.0**-n for n in range(4, 13))
MOST_STEPS = 100_000


def fitted(side: str, x: Rows, start: Start, tol: float) -> Any:
    """One side from this start to its tolerance, in nats a row."""
    classes = len(start["z"]["probs"])
    if side == "scikit-learn":
        return sides.scikit_learn(x, classes, start, max_iter=MOST_STEPS, tol=tol)
    from ppl_gen import EM, fit, gaussian_mixture

    run = fit if side == "fit" else sides.uncertified
    return run(gaussian_mixture(classes), x, EM(max_steps=MOST_STEPS, tol=tol, init=start))


def main() -> None:
    """For each mixture: the tolerances that serve, the log-likelihoods reached, times and ratios."""
    command = parser(__doc__, SIDES)
    command.add_argument("--rows", type=int, default=20_000)
    command.add_argument("--short", type=float, default=1e-7)
    command.add_argument(
        "--problems", nargs="+", choices=list(BADLY_SEPARATED), default=list(BADLY_SEPARATED)
    )
    command.add_argument("--tol", type=float, help="with --side")
    options = command.parse_args()
    if options.side is not None:
        one_measurement(options)
        return
    for problem in options.problems:
        print(f"-- {problem}")
        same = [f"--rows={options.rows}", f"--problems={problem}"]
        served = tolerances(same, options)
        best: dict[str, float] = {}
        wanted = options.sides
        for name in wanted:
            options.sides = [name]
            best |= compare(__file__, [*same, f"--tol={served[name]}"], options)[0]
        options.sides = wanted
        ratios(best)


def tolerances(same: list[str], options: Any) -> dict[str, float]:
    """Each side's loosest tolerance that ends within `--short` of the best log-likelihood."""

    def reached(name: str, tol: float) -> tuple[float, int]:
        python = sys.executable if name in OURS else options.peer_python
        words = measured(
            python, __file__, [*same, "--side", name, "--threads", "1", f"--tol={tol}", "--rounds=0"]
        )
        return float(words[1]), int(words[2])

    best = max(reached(name, LADDER[-1])[0] for name in options.sides)
    least, served = best - options.short * options.rows, {}
    for name in options.sides:
        for tol in LADDER:
            value, steps = reached(name, tol)
            if value >= least:
                print(
                    f"{name:24} tol {tol:.0e}: {steps} steps, {best - value:.1e} nats below the best {best:.6f}"
                )
                served[name] = tol
                break
        else:
            raise SystemExit(f"{name} ends more than {options.short} nats a row below {best:.6f}")
    return served


def one_measurement(options: Any) -> None:
    """Seconds, log-likelihood and steps of one side on one mixture."""
    x, start = BADLY_SEPARATED[options.problems[0]](options.rows)
    with threads(options.threads):
        fitted(
            options.side, x[:1_000], start, 1e-3
        )  # imports, and whatever the first call of a process loads
        begun = time.perf_counter()
        found = fitted(options.side, x, start, options.tol)
        taken = time.perf_counter() - begun
    steps = found.n_iter_ if hasattr(found, "n_iter_") else len(found.history) - 1
    print(taken, sides.log_likelihood(found, x), steps)


if __name__ == "__main__":
    main()
