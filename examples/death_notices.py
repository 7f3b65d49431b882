"""Weighted rows, and a maximum that plain EM hardly reaches: deaths a day, a mixture of two Poisson laws.

python examples/death_notices.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ppl_gen import EM, fit, poisson_mixture

# The Times' notices of women over 80: a row for each number of deaths a day, and on how many days it was met.
DATA = Path(__file__).parent / "data" / "death_notices.csv"
PUBLISHED = (-1989.946, 0.360, (1.256, 2.663))  # Hasselblad 1969; Titterington, Smith and Makov 1985


def main(small: bool = False) -> None:
    """Fit the ten rows as 1096 days, with SQUAREM and without; then the standard errors."""
    model = poisson_mixture(2)
    for accelerate in (True, False):
        algorithm = EM(accelerate=accelerate, restarts=1 if small else 10, max_steps=500 if small else 5000)
        result = fit(model, DATA, algorithm, weights="days", seed=0)
        print(
            f"{'SQUAREM' if accelerate else 'plain EM':8}  log-likelihood {result.log_likelihood:.6f} after "
            f"{result.run.evaluations} evaluations of the EM map: {result.status.name.lower()}"
        )
        if accelerate:
            best = result
    print("published log-likelihood {}, share {}, rates {}\n".format(*PUBLISHED))

    # The two laws overlap, so that their shares are hardly known: the intervals are wide.
    print(best.summary().round(3).to_string())


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="one start and few steps, for a quick look")
    main(**vars(options.parse_args()))
