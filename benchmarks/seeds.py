"""Whether the best known mode is found from every seed, at default settings.

    python benchmarks/seeds.py [--seeds 20 --models "iris full" --published]

One line for each mixture and latent class model of `tests/test_published.py`, and for its neighbours on the same
data: the published log-likelihood, the best one found, how many seeds reached it, and the seconds all of them took.
A seed has reached it within 1e-4 nats. A model is short where a seed has not, or where all end below what is
published. Not every likelihood here is bounded: a neighbour's best mode is the best regular one that a seed found.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from problems import DATA, carcinoma, faithful
from timing import threads

WITHIN = 1e-4  # nats


@dataclass(frozen=True)
class Case:
    """A model of some data, and its published log-likelihood with half a unit of the last printed digit."""

    name: str
    spec: Any
    data: Any
    published: float | None = None
    half_unit: float = 0.0
    weights: Any = None


def columns(file: str) -> np.ndarray:
    """The numbers of one of the example files."""
    with (DATA / file).open() as lines:
        return np.array([[float(cell) for cell in row] for row in list(csv.reader(lines))[1:]])


def cases() -> Iterator[Case]:
    """The published models first, of each data set, then those beside them."""
    from sklearn.datasets import load_iris

    from ppl_gen import gaussian_mixture, latent_class, poisson_mixture

    published = {
        "faithful full 2": (-1130.264, 5e-4),  # mclust VVV,2
        "faithful tied 3": (-1126.316, 5e-4),  # mclust EEE,3
        "galaxies diagonal 3": (-203.1792, 5e-5),  # mclust V,3
        "iris full 2": (-214.355, 5e-4),  # scikit-learn, many starts
        "iris full 3": (-180.186, 5e-4),
        "carcinoma classes 2": (-317.2568, 5e-5),  # poLCA
        "carcinoma classes 3": (-293.7050, 5e-5),
        "carcinoma classes 4": (-289.2858, 5e-5),
        "death notices, rows": (-1989.946, 5e-4),  # SQUAREM
        "death notices, weights": (-1989.946, 5e-4),
    }

    def case(name: str, spec: Any, data: Any, weights: Any = None) -> Case:
        return Case(name, spec, data, *published.get(name, (None, 0.0)), weights=weights)

    geyser, flowers = faithful(), load_iris().data
    galaxies = columns("galaxies.csv") / 1000
    for covariance, most in (("full", 3), ("tied", 4), ("diagonal", 4), ("spherical", 4)):
        for k in range(2, most + 1):
            yield case(f"faithful {covariance} {k}", gaussian_mixture(k, covariance), geyser)
    for covariance, most in (
        ("diagonal", 5),
        ("tied", 6),
    ):  # of six own variances, two are of a pair of galaxies each
        for k in range(2, most + 1):
            yield case(f"galaxies {covariance} {k}", gaussian_mixture(k, covariance), galaxies)
    for covariance in ("full", "tied", "diagonal", "spherical"):
        for k in (2, 3, 4):
            if (covariance, k) != ("full", 4):
                yield case(f"iris {covariance} {k}", gaussian_mixture(k, covariance), flowers)
    for k in range(2, 6):
        yield case(f"carcinoma classes {k}", latent_class(k), carcinoma())
    deaths, days = columns("death_notices.csv").T
    yield case("death notices, rows", poisson_mixture(2), np.repeat(deaths, days.astype(int))[:, None])
    yield case("death notices, weights", poisson_mixture(2), deaths[:, None], days)


def tried(case: Case, seeds: range) -> tuple[list[float], float]:
    """The log-likelihood that each seed ends at, and the seconds all took."""
    from ppl_gen import fit

    begun = time.perf_counter()
    found = [fit(case.spec, {"x": case.data}, weights=case.weights, seed=seed) for seed in seeds]
    return [one.log_likelihood for one in found], time.perf_counter() - begun


def short(case: Case, found: list[float]) -> tuple[int, bool]:
    """How many seeds reached the best mode, and whether that is too few or the mode below the published one."""
    best = max(found)
    hits = sum(best - value <= WITHIN for value in found)
    below = case.published is not None and best < case.published - case.half_unit - WITHIN
    return hits, below or hits < len(found)


def main() -> None:
    """A line a model; exit 1 where one is short."""
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--seeds", type=int, default=20)
    command.add_argument("--models", nargs="+", help="those whose name begins so; default all")
    command.add_argument("--published", action="store_true", help="those that have a published value")
    options = command.parse_args()
    failed = []
    print(f"{'model':24} {'published':>12} {'best found':>14}  seeds  seconds")
    chosen = [
        case
        for case in cases()
        if case.name.startswith(tuple(options.models or [""]))
        and not (options.published and case.published is None)
    ]
    with threads(1):
        for case in chosen:
            found, seconds = tried(case, range(options.seeds))
            hits, is_short = short(case, found)
            known = "" if case.published is None else f"{case.published:.10g}"
            rest = "" if hits == len(found) else f"  worst {min(found):.6f}"
            print(
                f"{case.name:24} {known:>12} {max(found):14.6f}  {hits:2}/{len(found):2}  {seconds:7.1f}{rest}",
                flush=True,
            )
            failed += [case.name] * is_short
    if failed:
        raise SystemExit(f"short: {', '.join(failed)}")


if __name__ == "__main__":
    main()
