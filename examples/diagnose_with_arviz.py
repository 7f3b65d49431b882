"""Does the model fit? Mixtures for the speeds of 82 galaxies, looked at with ArviZ (0.2x).

python examples/diagnose_with_arviz.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import arviz as az
import pandas as pd
from matplotlib.figure import Figure

from ppl_gen import EM, By, Categorical, Normal, Spec, fit

DATA = Path(__file__).parent / "data" / "galaxies.csv"


def clusters(k: int) -> Spec:
    """Galaxies come in k clusters z, and those of one cluster recede from us at about the same speed."""
    return Spec(model={"z": Categorical(k), "velocity": Normal(1, loc=By("z"), scale=By("z"))})


def main(small: bool = False, out: str = "out") -> None:
    """Fit, look up the doubtful galaxies, and hold data drawn from the models against the real ones."""
    galaxies = pd.read_csv(DATA) / 1000  # thousands of km/s
    three, four = (fit(clusters(k), galaxies, EM(restarts=50), seed=0) for k in (3, 4))
    print(f"BIC of three clusters {three.bic:.1f}, of four {four.bic:.1f}: too close to decide")

    # The posterior group has draws of the latents given the data. Parameters are a point estimate, so they have
    # no posterior here, and statistics of Markov chains (r-hat, ESS) would mean nothing: kind="stats".
    draws = 100 if small else 1000
    traced = {"three clusters": three.to_arviz(draws=draws), "four clusters": four.to_arviz(draws=draws)}
    doubtful = four.predict_proba(galaxies).max(axis=1).argsort()[:3]
    print("\nthe three galaxies hardest to place:", galaxies["velocity"].iloc[doubtful].tolist())
    print(az.summary(traced["four clusters"], var_names=["z"], coords={"unit": doubtful}, kind="stats"))

    # Above, densities of replicated data over that of the real data: do they have its bumps? Below, how often
    # replicated speeds lie under the real one, which is a flat line, up to chance (grey), if the model is right.
    figure = Figure(figsize=(9, 6), layout="constrained")
    for (above, below), (name, group) in zip(figure.subplots(2, 2).T, traced.items(), strict=True):
        az.plot_ppc(
            group, ax=above, num_pp_samples=50, random_seed=0, textsize=9, legend=name.startswith("three")
        )
        az.plot_bpv(group, ax=below, textsize=9)
        above.set(title=name, xlabel="velocity (1000 km/s)")
        below.set(title="", xlabel="share of replicates below", ylim=(0, 1.8))
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out, "galaxies.png"))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few draws, for a quick look")
    options.add_argument("--out", default="out", help="folder for the picture")
    main(**vars(options.parse_args()))
