"""The Gaussian variational autoencoder of F9 as a hand-written Pyro pair: first lesson, and oracle for tests.

    z_d ~ N(0, I),   x_d | z_d ~ N(F(z_d), I);   the guide: z_d | x_d ~ N(G(x_d), I).

The exact posterior's integral cannot be computed, so the encoder G stands in for it, one network for all
rows, and decoder and encoder climb the same lower bound together (F8). A draw z = G(x) + ε lets the gradient
through to G (F9.2).

`to_event(1)` says that the last dimension is one vector-valued variable, and not further independent rows:
the plate counts rows only. The networks are plain `nn.Module`s passed as arguments, so the gradients land in
their own parameters and Pyro's global parameter store stays empty.

`Trace_ELBO` scores a draw by F9.7; `TraceMeanField_ELBO` uses the closed form of the KL part, F9.1. They
differ on every draw, by −G(x)ᵀε, and agree in the mean.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Decoder(nn.Sequential):
    """F_μ: latent (…, k) to the mean of x (…, D), one hidden layer of ReLUs."""

    def __init__(self, latent: int, hidden: int, observed: int) -> None:
        super().__init__(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, observed))
        self.latent = latent


class Encoder(nn.Sequential):
    """G_μ: a row x (…, D) to the mean of its z (…, k), one hidden layer of ReLUs."""

    def __init__(self, observed: int, hidden: int, latent: int) -> None:
        super().__init__(nn.Linear(observed, hidden), nn.ReLU(), nn.Linear(hidden, latent))


def model(data: Tensor, decoder: Decoder) -> None:
    """F9, p(z) p(x|z) for data (N, D)."""
    with pyro.plate("rows", len(data)):
        origin = data.new_zeros(decoder.latent)
        z = pyro.sample("z", dist.Normal(origin, 1.0).to_event(1))  # (N, k)
        pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=data)


def guide(data: Tensor, encoder: Encoder) -> None:
    """F9, q(z|x) for data (N, D)."""
    with pyro.plate("rows", len(data)):
        pyro.sample("z", dist.Normal(encoder(data), 1.0).to_event(1))


def main() -> None:
    """Stochastic gradient ascent on the bound (F10) for a curve in the plane."""
    pyro.set_rng_seed(0)
    angle = torch.rand(256) * 3
    data = 4 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    decoder, encoder = Decoder(1, 32, 2), Encoder(2, 32, 1)
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=1e-2)
    objective = pyro.infer.TraceMeanField_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    for step in range(301):
        optimiser.zero_grad()
        loss = objective.differentiable_loss(
            lambda x: model(x, decoder), lambda x: guide(x, encoder), data
        ) / len(data)
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step:3d}   lower bound per row {-loss.item():.3f}")


if __name__ == "__main__":
    main()
