"""A model of one's own: a mixture of regressions, for how diabetes progresses with body mass.

python examples/own_model.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes

from ppl_gen import EM, By, Categorical, Input, Linear, Normal, Spec, fit


def model(k: int) -> Spec:
    """There are k kinds of patient, each with its own line (`by="z"`) and its own spread around it."""
    return Spec(
        model={
            "bmi": Input(1),  # given, never modelled
            "z": Categorical(k),
            "progression": Normal(1, loc=Linear("bmi", by="z"), scale=By("z")),
        },
        columns={"bmi": "bmi", "progression": "target"},  # what the nodes read; nothing for z, so z is latent
    )


def main(small: bool = False, out: str = "out") -> None:
    """Fit one, two and three kinds, choose by BIC, and draw the choice."""
    patients = load_diabetes(as_frame=True, scaled=False).frame
    patients = (patients - patients.mean()) / patients.std()  # slopes are then in standard deviations
    # The kinds are summed out exactly, and the M-step is weighted least squares: EM.
    fits = [fit(model(k), patients, EM(restarts=10 if small else 50), seed=0) for k in (1, 2, 3)]
    for k, result in enumerate(fits, start=1):
        print(f"{k} kind(s): log-likelihood {result.log_likelihood:8.2f}, BIC {result.bic:8.2f}")
    best = min(fits, key=lambda result: result.bic)  # one kind is least squares, as everyone knows it

    axes = (figure := Figure(figsize=(6, 4.5), layout="constrained")).add_subplot()
    line = best.parameters["progression"]["loc"]
    for kind, share in enumerate(best.parameters["z"]["probs"]):
        slope, height = line["weight"][kind].item(), line["bias"][kind].item()
        print(f"kind {kind}, {share:.0%} of patients: {slope:+.2f} sd of progression per sd of body mass")
        own = patients[best.predict(patients) == kind]
        axes.scatter(own["bmi"], own["target"], s=12, color=f"C{kind}", label=f"kind {kind}")
        axes.axline((0, height), slope=slope, color=f"C{kind}")
    axes.set(xlabel="body mass index (standardised)", ylabel="progression after a year (standardised)")
    axes.legend()
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out, "regressions.png"))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few restarts, for a quick look")
    options.add_argument("--out", default="out", help="folder for the picture")
    main(**vars(options.parse_args()))
