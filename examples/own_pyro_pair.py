"""A model and a guide that exist already, written in Pyro, through this library's SVI.

python examples/own_pyro_pair.py
"""

from __future__ import annotations

import argparse

import pyro
import torch
from pyro import distributions as dist
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import Tensor, nn

from ppl_gen import SVI, fit_pyro

torch.manual_seed(0)
encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))


def model(rows: dict[str, Tensor]) -> None:
    """Eight standard normal numbers, a network to the pixels' means, one noise level."""
    pyro.module("decoder", decoder)
    scale = pyro.param("scale", torch.tensor(0.3), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(rows["x"]), dim=-1):  # one plate, over the rows that are given
        z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=rows["x"])


def guide(rows: dict[str, Tensor]) -> None:
    """A network from the pixels to a mean and a scale for each of the eight."""
    pyro.module("encoder", encoder)
    with pyro.plate("rows", len(rows["x"]), dim=-1):
        loc, log_scale = encoder(rows["x"]).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def main(small: bool = False) -> None:
    """Train, check, score rows that were not trained on, and go back to Pyro."""
    train, test = (load_digits().data / 16)[:1500], (load_digits().data / 16)[1500:]
    algorithm = SVI(epochs=5 if small else 200, batch_size=100, learning_rate=2e-3, kl="analytic")
    found = fit_pyro(model, guide, train, algorithm)
    print(f"{found}\n{found.certificate}\n")
    by_pca = PCA(8).fit(train).score(test)
    print(
        f"log p(x) of a digit not trained on: {found.score(test):.2f} nats; by probabilistic PCA {by_pca:.2f}"
    )
    found.to_param_store()  # Pyro's own tools go on from there; the two modules hold the fitted weights
    bound = -Trace_ELBO(20).loss(model, guide, {"x": torch.tensor(test).float()}) / len(test)
    print(f"its ELBO by Pyro's own Trace_ELBO:  {bound:.2f} nats")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few epochs, for a quick look")
    main(**vars(options.parse_args()))
