"""Latent classes: seven pathologists look at 118 slides, each says carcinoma (2) or not (1).

python examples/carcinoma.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ppl_gen import EM, By, Categorical, Spec, select

DATA = Path(__file__).parent / "data" / "carcinoma.csv"

# Slides fall into k classes; within a class the seven verdicts are independent of each other. How many verdicts
# there are, and that each is 1 or 2, comes from the data.
CLASSES = Spec(model={"z": Categorical(2), "x": Categorical(probs=By("z"))})

# Maximised log-likelihoods that poLCA (Linzer and Lewis 2011) finds on the same table.
PUBLISHED = {2: -317.2568, 3: -293.7050, 4: -289.2858}


def main(small: bool = False) -> None:
    """Fit one to five classes, compare them, and read those that BIC prefers."""
    # With more classes there are more maxima, and it takes more restarts to meet the best one.
    found = select(CLASSES, DATA, {"z.k": range(1, 6)}, algorithm=EM(restarts=20 if small else 200), seed=0)
    print(f"{found}\n")
    for k, published in PUBLISHED.items():
        own = found.table["log_likelihood"][found.table["z.k"] == k].item()
        print(f"{k} classes: log-likelihood {own:.4f}, published {published:.4f}")

    # BIC is smallest for three: slides that nearly all call carcinoma, slides that nearly nobody does, and slides
    # that divide the room.
    probs = found.best.parameters["x"]["probs"]  # (classes, pathologists, verdicts)
    print("\nprobability of the verdict 'carcinoma', by class and pathologist")
    print("class  share    " + "     ".join("ABCDEFG"))
    for k, share in enumerate(found.best.parameters["z"]["probs"]):
        print(f"{k:5d}  {share:.4f}" + "".join(f"  {p:.2f}" for p in probs[k, :, 1]))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few restarts, for a quick look")
    main(**vars(options.parse_args()))
