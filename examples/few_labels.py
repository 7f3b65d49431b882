"""A few labels: 150 irises, of which 15 have been named by a botanist.

python examples/few_labels.py
"""

from __future__ import annotations

import argparse

import numpy as np
from sklearn.datasets import load_iris

from ppl_gen import EM, By, Categorical, MultivariateNormal, Spec, fit

MODEL = Spec(
    model={
        "species": Categorical(3),
        "x": MultivariateNormal(loc=By("species"), cov=By("species")),
    }
)


def main(small: bool = False) -> None:
    """The same declaration with no label, a few, and all: what the data have is observed."""
    iris = load_iris()
    names = iris.target_names[iris.target]
    shown = np.random.default_rng(0).permutation(len(names))[:15]
    few = np.full(len(names), None)
    few[shown] = names[shown]  # where None stands, the species is summed out
    hidden = np.setdiff1d(np.arange(len(names)), shown)

    algorithm = EM(restarts=10 if small else 50)
    for told, labels in {"15 labels": few, "all labels": names}.items():
        result = fit(MODEL, {"species": labels, "x": iris.data}, algorithm, seed=0)
        right = (result.predict({"x": iris.data[hidden]}) == names[hidden]).mean()
        print(f"{told:10}  {right:.1%} of the others are named rightly; certificate {result.certificate.ok}")
    found = fit(MODEL, {"x": iris.data}, algorithm, seed=0).predict({"x": iris.data})
    print("no label    classes have no names:", [np.bincount(found[iris.target == k], minlength=3) for k in range(3)])


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few restarts, for a quick look")
    main(**vars(options.parse_args()))
