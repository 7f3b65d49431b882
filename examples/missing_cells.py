"""Missing cells: some of Old Faithful's numbers are deleted, the model is fitted to the rest and fills them in.

python examples/missing_cells.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from ppl_gen import EM, fit, gaussian_mixture

DATA = Path(__file__).parent / "data" / "faithful.csv"


def main(small: bool = False) -> None:
    """Delete, fit, impute, and hold what was imputed against what was deleted."""
    truth, random = pd.read_csv(DATA), np.random.default_rng(0)
    gone = (random.random((len(truth), 1)) < 0.4) & (random.integers(2, size=(len(truth), 1)) == [0, 1])
    holes = truth.mask(gone)  # NaN where a number was deleted

    # A missing cell is integrated out: the log-likelihood is that of the cells that are there, exactly.
    result = fit(gaussian_mixture(2), holes, EM(restarts=5 if small else 50), seed=0)
    print(f"{gone.sum()} of {truth.size} cells deleted; log-likelihood {result.log_likelihood:.3f}")

    filled = result.impute(holes)["x"]  # conditional means where a cell is gone
    drawn = result.impute(holes, draws=100 if small else 500)["x"]  # (draws, rows, columns): completed copies
    low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
    print("           error of the column's mean   of impute   deleted cells within 90% of the draws")
    for j, name in enumerate(truth):
        own, mean = truth[name][gone[:, j]], holes[name].mean()
        errors = [np.sqrt(np.mean((guess - own) ** 2)) for guess in (mean, filled[gone[:, j], j])]
        inside = ((low[:, j] <= truth[name]) & (truth[name] <= high[:, j]))[gone[:, j]].mean()
        print(f"{name:9}  {errors[0]:26.2f}   {errors[1]:9.2f}   {inside:.0%}")


if __name__ == "__main__":
    main(small="--small" in sys.argv)
