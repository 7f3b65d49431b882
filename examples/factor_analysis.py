"""Two hidden factors behind thirteen measurements of a wine: factor analysis by exact EM, with holes and without.

python examples/factor_analysis.py
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.datasets import load_wine

from ppl_gen import EM, Fit, Free, Linear, Normal, Spec, fit

# z is latent, as no column is called so. Every measurement is a mixture of the factors, plus noise of its own.
FACTORS = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})

# One noise variance for all columns instead: probabilistic PCA. The columns then have to be in one unit.
COMPONENTS = FACTORS.replace("x.scale", Free(dim=1))


def report(name: str, result: Fit) -> None:
    """Print how good a fit is, and how it was found."""
    print(f"{name:14} log-likelihood {result.log_likelihood:.3f}, BIC {result.bic:.1f}, {result.status.name}")


def main(small: bool = False) -> None:
    """Fit, read the loadings, compare the numbers of factors, and fit once more with cells deleted."""
    data = load_wine(as_frame=True)
    wines = (data.data - data.data.mean()) / data.data.std(ddof=0)
    result = fit(FACTORS, wines)
    print(result.run.notes[0])  # the algorithm and why: log p(x) is known exactly, and nothing is drawn
    report("factors", result)
    report("components", fit(COMPONENTS, wines))

    # Loadings of standardised columns are correlations with the factors. What the factors leave is the noise.
    parameters = result.parameters["x"]
    print("\nmeasurement                    factor 1  factor 2  left to noise")
    for name, row, scale in zip(wines, parameters["loc"]["weight"], parameters["scale"], strict=True):
        print(f"{name:30} {row[0]:8.2f}  {row[1]:8.2f}  {scale**2:13.0%}")
    scores = result.transform(wines)  # E[z | x] of every wine
    for kind in np.unique(data.target):
        print(f"cultivar {kind}: mean factor scores {scores[data.target == kind].mean(0).round(2)}")

    # How many factors? BIC counts loadings without the rotations that no data can tell apart.
    for k in range(1, 4 if small else 7):
        report(f"{k} factor(s)", fit(FACTORS.replace("z.dim", k), wines, EM()))

    # A missing cell is integrated out: a wine with three measurements still counts for what they say.
    holes = wines.mask(np.random.default_rng(0).random(wines.shape) < 0.2)
    with_holes = fit(FACTORS, holes)
    report("a fifth gone", with_holes)
    apart = np.abs(with_holes.parameters["x"]["loc"]["weight"] - parameters["loc"]["weight"])
    print(f"largest change of a loading: {apart.max():.2f}")


if __name__ == "__main__":
    main(small="--small" in sys.argv)
