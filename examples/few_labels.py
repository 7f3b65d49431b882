"""A few labels: 150 irises, of which 15 have been named by a botanist.

python examples/few_labels.py
"""

from __future__ import annotations

import sys

import numpy as np
from sklearn.datasets import load_iris

from ppl_gen import EM, By, Categorical, MultivariateNormal, Spec, fit

X = MultivariateNormal(loc=By("species"), cov=By("species"))
MODEL = Spec(model={"species": Categorical(3), "x": X})


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
        print(
            f"{told:10}  {right:.1%} of the other 135 told by their measures; certificate {result.certificate.ok}"
        )
    found = fit(MODEL, {"x": iris.data}, algorithm, seed=0).predict({"x": iris.data})
    for name in iris.target_names:
        print(f"no label    {name}: {np.bincount(found[names == name], minlength=3)} in classes 0, 1, 2")


if __name__ == "__main__":
    main(small="--small" in sys.argv)
