"""Ours and the peers, each as a function from rows and a start to a fitted model.

Each is imported where it is called: the peers' interpreter may lack this library, and this one's the peers.
"""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import numpy as np
from problems import Rows, Start


def plain_em(**options: Any) -> Any:
    """EM as its peers run it: one M-step an iteration, nothing extrapolated, every restart to its end."""
    from ppl_gen import EM

    off = {"accelerate": False, "prune": False}
    return EM(
        **{name: value for name, value in off.items() if name in {f.name for f in fields(EM)}}, **options
    )


def uncertified(spec: Any, data: Any, algorithm: Any, *, seed: int = 0) -> Any:
    """The run inside a `fit`: rows checked, started, iterated; not held against the formulas."""
    from ppl_gen import compile_spec
    from ppl_gen.data.reading import read_table
    from ppl_gen.infer.em import run_em

    table = read_table(data, spec)
    return run_em(compile_spec(spec, table.schema), table, algorithm, seed=seed)


def scikit_learn(x: Rows, classes: int, start: Start | None = None, **options: Any) -> Any:
    """scikit-learn's GaussianMixture, fitted; nothing is added to its covariances unless asked for."""
    from sklearn.mixture import GaussianMixture

    if start is not None:
        own = start["x"]
        precisions = np.linalg.inv(own["cov"]) if "cov" in own else 1 / own["scale"] ** 2
        kind = "full" if "cov" in own else "diag"
        options |= {"weights_init": start["z"]["probs"], "means_init": own["loc"]}
        options |= {"precisions_init": precisions, "covariance_type": kind}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the iterations are few on purpose
        return GaussianMixture(classes, **({"reg_covar": 0} | options)).fit(x)


def pomegranate(x: Rows, start: Start, steps: int) -> Any:
    """Pomegranate's GeneralMixtureModel after this many iterations, in float64 throughout.

    It sums weights in torch's default type whatever its parameters' own: left at float32, that alone moves the
    log-likelihood by 1e-8 of itself.
    """
    import torch
    from pomegranate.distributions import Normal
    from pomegranate.gmm import GeneralMixtureModel

    torch.set_default_dtype(torch.float64)
    own = {name: torch.tensor(value) for name, value in start["x"].items()}
    kind, spread = ("full", own["cov"]) if "cov" in own else ("diag", own["scale"] ** 2)
    parts = [
        Normal(loc, s, covariance_type=kind, min_cov=0.0) for loc, s in zip(own["loc"], spread, strict=True)
    ]
    shares = torch.tensor(start["z"]["probs"])
    return GeneralMixtureModel(parts, shares, max_iter=steps, tol=-np.inf).fit(torch.from_numpy(x))


def stepmix(items: Any, classes: int, **options: Any) -> Any:
    """StepMix's latent class model of binary items, fitted."""
    from stepmix.stepmix import StepMix

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return StepMix(classes, measurement="binary", progress_bar=0, **options).fit(items)


def log_likelihood(fitted: Any, x: Any) -> float:
    """In nats, summed over rows: of a Fit, a Run, or a peer's model."""
    if hasattr(fitted, "history"):
        return float(fitted.history[-1])
    if hasattr(fitted, "log_probability"):
        import torch

        return float(fitted.log_probability(torch.from_numpy(x)).sum())
    return float(fitted.score(x)) * len(x)
