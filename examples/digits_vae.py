"""Handwritten digits by a variational autoencoder: 64 grey pixels from 8 numbers.

python examples/digits_vae.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from ppl_gen import MLP, SVI, Free, Normal, Spec, fit
from ppl_gen.diagnose import plot_history, plot_reconstructions

# Eight standard normal numbers pass through a network to the means of the pixels, with one noise level for all
# pixels around them. No guide is written, so one is derived: a network from the pixels back to a mean and a
# scale for each of the eight.
VAE = Spec(
    model={
        "z": Normal(8, loc=0, scale=1),
        "x": Normal([8, 8], loc=MLP("z", [64]), scale=Free(dim=1)),
    }
)


def main(small: bool = False, out: str = "out") -> None:
    """Train on most digits, score the others, and draw some."""
    pixels = (
        load_digits().data / 16
    )  # (1797, 64), from 0 to 1; a warning tells of three that nobody ever inks
    train, test = pixels[:1500], pixels[1500:]
    result = fit(VAE, train, SVI(epochs=5 if small else 200, batch_size=100, learning_rate=2e-3), seed=0)
    print(result.spec)
    print(result.certificate)

    # log p(x) needs an integral over z; it is estimated with draws of the guide, and more draws come closer.
    score, error = result.score_samples(test, draws=100, return_std_error=True)
    print(
        f"\nlog p(x) of a digit not trained on: {score.mean():.2f} nats, each give or take {error.mean():.2f}"
    )
    # The same model with a straight line for a network is probabilistic PCA, whose log p(x) is exact.
    print(f"the same by probabilistic PCA:      {PCA(8).fit(train).score(test):.2f} nats")

    Path(out).mkdir(parents=True, exist_ok=True)
    plot_reconstructions(result, test).savefig(Path(out, "digits.png"))
    plot_history(result).savefig(Path(out, "digits_history.png"))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few epochs, for a quick look")
    options.add_argument("--out", default="out", help="folder for the pictures")
    main(**vars(options.parse_args()))
