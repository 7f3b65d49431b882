"""Two kinds of eruption, or three? Old Faithful by EM.

python examples/old_faithful.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ppl_gen import EM, By, Categorical, Fit, Free, MultivariateNormal, Spec, fit
from ppl_gen.diagnose import plot_classes, plot_history

DATA = Path(__file__).parent / "data" / "faithful.csv"

# Each eruption belongs to a class z that nobody saw. Given the class, its length and the wait until the next
# one are jointly normal. The file has no column z, so z is latent; its two columns go to the only leaf, x.
TWO = Spec(model={"z": Categorical(2), "x": MultivariateNormal(loc=By("z"), cov=By("z"))})

# A neighbouring model is a small change: three classes, which share one covariance.
THREE = TWO.replace("z.k", 3).replace("x.cov", Free())


def report(result: Fit) -> None:
    """Print how good a fit is, and which maxima its restarts ended in."""
    print(f"\n{result.spec}")
    print(f"log-likelihood {result.log_likelihood:.3f}, BIC {result.bic:.2f}, {result.status.value}")
    # A likelihood can have many maxima. Only restarts tell whether the best one was a matter of luck.
    print("log-likelihood  restarts")
    for mode in result.modes:
        print(f"{mode.log_likelihood:14.3f}  {mode.hits:8d}")


def main(small: bool = False, out: str = "out") -> None:
    """Fit both models, report, and draw the one with the smaller BIC."""
    restarts = EM(restarts=10 if small else 100)
    fits = [fit(spec, DATA, restarts, seed=0) for spec in (TWO, THREE)]
    for result in fits:
        report(result)

    best = min(fits, key=lambda result: result.bic)
    print("\nmean length and wait, in minutes, of each class (largest class first):")
    print(best.parameters["x"]["loc"].round(2))
    # The certificate holds the fit against independently written formulas: did EM rise at every step, is the
    # objective the textbook's, is the gradient zero where it stopped?
    print(f"\n{best.certificate}")

    Path(out).mkdir(parents=True, exist_ok=True)
    plot_classes(best).savefig(Path(out, "old_faithful.png"))
    plot_history(best).savefig(Path(out, "old_faithful_history.png"))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few restarts, for a quick look")
    options.add_argument("--out", default="out", help="folder for the pictures")
    main(**vars(options.parse_args()))
