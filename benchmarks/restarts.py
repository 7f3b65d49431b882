"""Many starts of one small model to one tolerance, the best mode kept: against scikit-learn and StepMix.

    python benchmarks/restarts.py --problem faithful  [--starts 100 --sides fit scikit-learn]
    python benchmarks/restarts.py --problem carcinoma [--starts 500 --sides fit stepmix --peer-python PATH]

Old Faithful: three normals with covariances of their own. Carcinoma: four latent classes, seven binary items. Every
side draws its own starts, so they are compared by the best log-likelihood each found: a side below the best of all
has missed the mode, and the script says so. The tolerance is in nats a row, as every side counts it.
"""

from __future__ import annotations

import time
from typing import Any

import sides
from problems import carcinoma, faithful
from timing import compare, parser, ratios, threads

SIDES = ("fit", "uncertified", "scikit-learn", "stepmix")
STARTS = {"faithful": 100, "carcinoma": 500}
WITHIN = (
    1e-2  # nats in all by which two sides may differ and be at one mode: the tolerance stops them short of it
)


def fitted(side: str, problem: str, starts: int, tol: float, seed: int) -> Any:
    """One side, all its starts."""
    x: Any = faithful() if problem == "faithful" else carcinoma()
    many: dict[str, Any] = {"n_init": starts, "max_iter": 5_000, "random_state": seed}
    if side == "scikit-learn":
        return sides.scikit_learn(x, 3, tol=tol, reg_covar=1e-6, **many)
    if side == "stepmix":
        return sides.stepmix(x, 4, abs_tol=tol, **many)
    from ppl_gen import EM, fit, gaussian_mixture, latent_class

    spec = gaussian_mixture(3) if problem == "faithful" else latent_class(4)
    run = fit if side == "fit" else sides.uncertified
    return run(spec, x, EM(restarts=starts, tol=tol, max_steps=5_000), seed=seed)


def main() -> None:
    """Print every side's times, the mode each found, and the ratios."""
    command = parser(__doc__, SIDES, default=["fit", "uncertified"])
    command.add_argument("--problem", choices=list(STARTS), default="faithful")
    command.add_argument("--starts", type=int)
    command.add_argument("--tol", type=float, default=1e-8)
    command.add_argument("--seed", type=int, default=0)
    options = command.parse_args()
    starts = options.starts or STARTS[options.problem]
    if options.side is None:
        peer = "scikit-learn" if options.problem == "faithful" else "stepmix"
        if not set(options.sides) & {"scikit-learn", "stepmix"}:
            options.sides = [*options.sides, peer]
        same = [f"--problem={options.problem}", f"--starts={starts}", f"--tol={options.tol}"]
        best, said = compare(__file__, [*same, f"--seed={options.seed}"], options)
        report({name: float(words[0]) for name, words in said.items()})
        ratios(best)
        return
    with threads(options.threads):
        fitted(options.side, options.problem, 2, 1e-3, options.seed)  # imports, and what a first call loads
        begun = time.perf_counter()
        found = fitted(options.side, options.problem, starts, options.tol, options.seed)
        taken = time.perf_counter() - begun
    x: Any = faithful() if options.problem == "faithful" else carcinoma()
    print(taken, sides.log_likelihood(found, x))


def report(found: dict[str, float]) -> None:
    """The best log-likelihood of each side, and who missed the best of all."""
    top = max(found.values())
    for name, value in found.items():
        print(
            f"{name:24} best log-likelihood {value:.6f}{'' if top - value <= WITHIN else '  (mode missed)'}"
        )


if __name__ == "__main__":
    main()
