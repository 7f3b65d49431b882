"""Counts with an exposure: cells of two programmes, each sequenced to a depth of its own.

python examples/counts_with_exposure.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.linear_model import LinearRegression

from ppl_gen import MLP, SVI, Input, NegativeBinomial, Normal, Spec, fit

WITHOUT = Spec(model={"z": Normal(2, loc=0, scale=1), "x": NegativeBinomial(logits=MLP("z", [32]))})
# One more term: the log of a row's exposure is added to each log mean, with a coefficient of 1.
X = NegativeBinomial(logits=MLP("z", [32]) + "log_size")
WITH = Spec(model={"log_size": Input(1), "z": Normal(2, loc=0, scale=1), "x": X})


def main(small: bool = False, out: str = "out") -> None:
    """Draw a table whose law is known, fit it with and without the exposure, and hold these side by side."""
    random, n, genes = np.random.default_rng(0), 600, 30
    # A cell has one of two programmes and follows it by a = Uniform(0, 2): gene j's share of the counts is
    # proportional to exp(base_j + a·effect_kj). Its counts are Poisson about depth·share·g, where
    # g = Gamma(5, mean 1): negative binomial. The depth, LogNormal(6.9, 0.6), has nothing to do with either.
    base, effect = random.normal(size=genes), random.normal(size=(2, genes))
    programme, depth = random.integers(2, size=n), random.lognormal(6.9, 0.6, n)
    share = np.exp(base + random.uniform(0, 2, (n, 1)) * effect[programme])
    share /= share.sum(1, keepdims=True)
    counts = random.poisson(depth[:, None] * share * random.gamma(5, 1 / 5, (n, genes)))
    # The depth is not known; a row's total stands for it. Being told that total is itself worth something in
    # log p(x | log_size), so that the two scores are not of the same task; the latents are what to compare.
    log_size = np.log(counts.sum(1, keepdims=True))
    log_size, log_depth = log_size - log_size[:400].mean(), np.log(depth[400:])
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
    for spec, told, ax in ((WITH, "with", axes[0]), (WITHOUT, "without", axes[1])):
        rows = {"x": counts} | ({"log_size": log_size} if told == "with" else {})
        train, test = ({name: own[i] for name, own in rows.items()} for i in (slice(400), slice(400, n)))
        result = fit(spec, train, SVI(epochs=20 if small else 300, batch_size=50, learning_rate=5e-3))
        print(f"{result.spec}\n{result.certificate}")
        score, z = result.score_samples(test, draws=200), result.transform(test)
        explained = LinearRegression().fit(z, log_depth).score(z, log_depth)
        print(f"{told} exposure: log p(x) of a cell not trained on {score.mean():.2f}, ", end="")
        print(f"standard error {score.std(ddof=1) / np.sqrt(len(score)):.2f};")
        print(f"{told} exposure: the latent means explain {explained:.0%} of the variance of log depth\n")
        ax.scatter(*z.T, s=4 * np.exp(log_depth - 6), c=programme[400:], cmap="coolwarm", alpha=0.6)
        ax.set(title=f"{told} exposure", xlabel="mean of the first z", ylabel="mean of the second z")
    figure.suptitle("Cells not trained on; the colour is the programme, a larger dot was sequenced deeper")
    Path(out).mkdir(parents=True, exist_ok=True)
    figure.savefig(Path(out, "counts.png"))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few epochs, for a quick look")
    options.add_argument("--out", default="out", help="folder for the pictures")
    main(**vars(options.parse_args()))
