"""From a declaration to plain Pyro: one's own training loop, traces and predictions.

python examples/own_pyro_loop.py
"""

from __future__ import annotations

import argparse

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.optim import ClippedAdam
from sklearn.datasets import load_wine
from sklearn.decomposition import FactorAnalysis

from ppl_gen import Free, Linear, Normal, Spec, compile_spec

# Factor analysis: two hidden factors behind thirteen measurements of a wine. The guide is derived.
FACTORS = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})


def main(small: bool = False) -> None:
    """Compile, look inside, train by hand, predict."""
    wines = load_wine().data
    wines = (wines - wines.mean(0)) / wines.std(0)
    program = compile_spec(FACTORS, {"x": wines})  # an nn.Module; the data settle its sizes and are not kept
    data = program.tensors({"x": wines})  # (178, 13)
    # Pyro's SVI trains what is in its parameter store. The pair puts the module's parameters there.
    model, guide = program.pyro_pair()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)

    # Both are ordinary Pyro functions: any handler works on them.
    print(poutine.trace(model).get_trace(data).format_shapes())

    # size= is the number of rows in all, so that the rows of a minibatch count for all of them.
    svi = SVI(model, guide, ClippedAdam({"lr": 0.01, "lrd": 0.999}), Trace_ELBO())
    for _ in range(20 if small else 200):
        for rows in torch.randperm(len(wines)).split(32):
            svi.step({"x": data["x"][rows]}, size=len(wines))
    bound = -Trace_ELBO(num_particles=100).loss(model, guide, data) / len(wines)
    exact = FactorAnalysis(2).fit(wines).score(wines)
    print(f"ELBO of a wine {bound:.2f}; largest log p(x) of this model, by scikit-learn {exact:.2f}")

    # The program is trained in place: its parameters can be read, and it can draw.
    print("loadings of alcohol on the two factors:", program.natural()["x"]["loc"]["weight"][0].round(2))
    # The model is given no x here, so it draws x; Predictive hands it the guide's z for three wines.
    first = {"x": data["x"][:3]}
    replicas = Predictive(lambda _: program.model(n=3), guide=guide, num_samples=200)(first)["x"]
    print("alcohol of three wines, standardised:", first["x"][:, 0].numpy().round(2))
    print("mean of 200 replicas of each:        ", replicas.mean(0)[:, 0].numpy().round(2))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--small", action="store_true", help="few epochs, for a quick look")
    main(**vars(options.parse_args()))
