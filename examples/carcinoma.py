"""Latent classes: seven pathologists look at 118 slides, each says carcinoma (2) or not (1).

python examples/carcinoma.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ppl_gen import EM, By, Categorical, Spec, fit

DATA = Path(__file__).parent / "data" / "carcinoma.csv"

# Maximised log-likelihoods that poLCA (Linzer and Lewis 2011) finds on the same table.
PUBLISHED = {2: -317.2568, 3: -293.7050, 4: -289.2858}


def model(k: int) -> Spec:
    """Slides fall into k classes; within a class the seven verdicts are independent of each other.

    How many verdicts there are, and that each is 1 or 2, comes from the data.
    """
    return Spec(model={"z": Categorical(k), "x": Categorical(probs=By("z"))})


def main(small: bool = False) -> None:
    """Fit two, three and four classes, compare them, and read the three."""
    # With more classes there are more maxima, and it takes more restarts to meet the best one. EM also slows down
    # where probabilities go to 0 or 1: the smaller tolerance buys the fourth decimal.
    algorithm = EM(restarts=20 if small else 200, tol=1e-10)
    fits = {k: fit(model(k), DATA, algorithm, seed=0) for k in PUBLISHED}

    print("classes  log-likelihood  published  parameters     AIC     BIC")
    for k, result in fits.items():
        print(
            f"{k:7d}  {result.log_likelihood:14.4f}  {PUBLISHED[k]:9.4f}  {result.n_parameters:10d}"
            f"  {result.aic:6.2f}  {result.bic:6.2f}"
        )

    # BIC is smallest for three: slides that nearly all call carcinoma, slides that nearly nobody does, and slides
    # that divide the room.
    three = fits[3]
    probs = three.parameters["x"]["probs"]  # (classes, pathologists, verdicts)
    print("\nprobability of the verdict 'carcinoma', by class and pathologist")
    print("class  share    " + "     ".join("ABCDEFG"))
    for k, share in enumerate(three.parameters["z"]["probs"]):
        print(f"{k:5d}  {share:.4f}" + "".join(f"  {p:.2f}" for p in probs[k, :, 1]))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few restarts, for a quick look")
    main(**vars(options.parse_args()))
