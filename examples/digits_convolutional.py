"""Handwritten digits by convolutions: the autoencoder of digits_vae.py with layers that know what is next to what.

python examples/digits_convolutional.py --out out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from ppl_gen import SVI, Conv, Free, Linear, Normal, Spec, fit
from ppl_gen.diagnose import plot_reconstructions

# Each convolution halves an image, 8 to 4 to 2 pixels a side, and the transposed ones of the decoder go back.
# The guide is written out, so that its network h goes from the image to a mean and a scale of each z.
CONVOLUTIONAL = Spec(
    model={
        "z": Normal(8, loc=0, scale=1),
        "x": Normal([1, 8, 8], loc=Conv("z", [32, 16]), scale=Free(dim=1)),
    },
    guide={"h": Conv("x", [16, 32]), "z": Normal(loc=Linear("h"), scale=Linear("h"))},
)
# The same with layers that join every pixel to every other: about as many weights, in the guide too
# (10,560 and 10,656, which `n_parameters` does not count).
DENSE = CONVOLUTIONAL.replace("x.loc", "MLP(z, [128])").replace("guide.h", "MLP(x, [128], dim=16)")


def main(small: bool = False, out: str = "out") -> None:
    """Train both on most digits, score the others, and draw some."""
    pixels = load_digits().data / 16  # (1797, 64), from 0 to 1; a warning tells of three never inked
    train, test = (pixels[:100], pixels[1500:1550]) if small else (pixels[:1500], pixels[1500:])
    algorithm = SVI(epochs=1 if small else 70, batch_size=100, learning_rate=2e-3, lowering="eager")
    scores = {}
    for name, spec in {"convolutional": CONVOLUTIONAL, "dense": DENSE}.items():
        result = fit(spec, train, algorithm, seed=0)
        print(result.spec)
        print(result.certificate)
        own = scores[name] = result.score_samples(test, draws=100)
        print(
            f"{name}: {result.n_parameters} parameters without the guide's; log p(x) of a digit not trained on ",
            end="",
        )
        print(f"{own.mean():.2f} nats, standard error {own.std(ddof=1) / np.sqrt(len(own)):.2f}\n")
        if name == "convolutional":
            Path(out).mkdir(parents=True, exist_ok=True)
            plot_reconstructions(result, test).savefig(Path(out, "digits_convolutional.png"))
    # Digit by digit. Convolutions are ahead after 70 epochs, and behind after the one step of --small.
    ahead = scores["convolutional"] - scores["dense"]
    error = ahead.std(ddof=1) / np.sqrt(len(ahead))
    print(f"convolutional minus dense: {ahead.mean():.2f} nats, standard error {error:.2f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few epochs, for a quick look")
    options.add_argument("--out", default="out", help="folder for the pictures")
    main(**vars(options.parse_args()))
