"""One training step of a VAE against Pyro's `SVI.step` and hand-written PyTorch with fused Adam.

    python benchmarks/vae_step.py [--steps 500 --rounds 7]

MLP 64, 8 latents, 64 pixels, batch 128, float32; the same rows in the same order. Ours is what `SVI` runs: rows
picked by a shuffled index, loss, gradient, guard and Adam.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from sklearn.datasets import load_digits
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from timing import THREADS, seconds, threads

from ppl_gen import MLP, SVI, Linear, Normal, Program, Spec, compile_spec
from ppl_gen.infer.ascent import Ascent
from ppl_gen.program.lowering import pyro_scope

BATCH = 128
DIGITS = (load_digits().data / 16).astype(np.float32)
SPEC = Spec(
    model={"z": Normal(8, loc=0, scale=1), "x": Normal(64, loc=MLP("z", [64]), scale=1)},
    guide={"h": MLP("x", [64]), "z": Normal(8, loc=Linear("h"), scale=Linear("h"))},
)


def program() -> Program:
    """The declared VAE at its starting parameters."""
    return compile_spec(SPEC, {"x": DIGITS}, seed=0)


def batches() -> Callable[[], torch.Tensor]:
    """Shuffled indices of full batches, one epoch after another."""
    random, queue = torch.Generator().manual_seed(0), []

    def following() -> torch.Tensor:
        if not queue:
            order = torch.randperm(len(DIGITS), generator=random)
            queue.extend(order[: len(order) // BATCH * BATCH].split(BATCH))
        return queue.pop()

    return following


def ours(lowering: str) -> Callable[[], object]:
    """A step of our loop."""
    data = {"x": torch.from_numpy(DIGITS)}
    ascent, pick = Ascent(program(), SVI(batch_size=BATCH, lowering=lowering), data, planned=0), batches()
    return lambda: ascent.advance(pick(), full=True)


def networks() -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Trunk, location head, log-scale head and decoder in plain torch."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
    decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
    return trunk, nn.Linear(64, 8), nn.Linear(64, 8), decoder


def pyro_step() -> Callable[[], object]:
    """`pyro.infer.SVI.step` on a Pyro pair written by hand, validation off."""
    pyro.clear_param_store()
    pyro.enable_validation(False)
    trunk, loc, log_scale, decoder = networks()

    def model(x: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            zero = x.new_zeros(len(x), 8)
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            mean = decoder(z)
            pyro.sample("x", dist.Normal(mean, torch.ones_like(mean)).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        for name, module in (("trunk", trunk), ("loc", loc), ("log_scale", log_scale)):
            pyro.module(name, module)
        with pyro.plate("rows", len(x)):
            hidden = trunk(x)
            pyro.sample("z", dist.Normal(loc(hidden), log_scale(hidden).exp()).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    data, pick = torch.from_numpy(DIGITS), batches()
    return lambda: svi.step(data[pick()])


def hand_written() -> Callable[[], object]:
    """The same model in plain torch: closed-form KL, fused Adam."""
    trunk, loc, log_scale, decoder = networks()
    parameters = [p for m in (trunk, loc, log_scale, decoder) for p in m.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-3, fused=True)
    data, pick = torch.from_numpy(DIGITS), batches()

    def step() -> None:
        x = data[pick()]
        optimiser.zero_grad()
        hidden = trunk(x)
        mean, log_sd = loc(hidden), log_scale(hidden)
        z = mean + log_sd.exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean**2 + (2 * log_sd).exp() - 1 - 2 * log_sd).sum()
        loss = (0.5 * ((x - decoder(z)) ** 2).sum() + divergence) / BATCH
        loss.backward()
        optimiser.step()

    return step


def main() -> None:
    """Print each side's median milliseconds a step at each thread count, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    best: dict[str, float] = {}
    for count in THREADS:
        with threads(count), pyro_scope():
            sides = {
                "ppl_gen, compiled": ours("compiled"),
                "ppl_gen, traced": ours("traced"),
                "Pyro SVI.step": pyro_step(),
                "hand-written torch": hand_written(),
            }
            taken: dict[str, list[float]] = {name: [] for name in sides}
            for name, step in sides.items():
                print(f"{name:20} {count} thread(s)  start-up {seconds(step):.2f} s")
            for _ in range(options.rounds):
                for name, step in sides.items():
                    repeat = options.steps if "Pyro" not in name else options.steps // 5
                    taken[name].append(
                        seconds(lambda s=step, n=repeat: [s() for _ in range(n)]) / repeat * 1e3
                    )
            for name, values in taken.items():
                median = statistics.median(values)
                best[name] = min(best.get(name, np.inf), median)
                spread = f"({min(values):.3f} to {max(values):.3f})"
                print(f"{name:20} {count} thread(s)  median {median:.3f} ms a step {spread}")
    for own in ("ppl_gen, compiled", "ppl_gen, traced"):
        for peer in ("Pyro SVI.step", "hand-written torch"):
            print(f"{own} against {peer}: {best[peer] / best[own]:.2f}x")
    pyro.clear_param_store()


if __name__ == "__main__":
    main()
