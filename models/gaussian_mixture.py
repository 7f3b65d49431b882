"""A full-covariance Gaussian mixture as a hand-written Pyro pair: a first lesson, an oracle for the tests.

    z_d ~ Categorical(π),   x_d | z_d = k ~ N(μ_k, L_k L_kᵀ),   for every row d on its own.

Three ideas carry it.

*Plate.* `pyro.plate("rows", N)` says that the N rows are independent, so log p of the data is a sum over
rows (F4). It also claims a batch dimension: inside it `z` holds one class for each row.

*Enumeration.* No gradient goes through a drawn class, and none is needed: K classes can be summed exactly
(F1). `infer={"enumerate": "parallel"}` makes `TraceEnum_ELBO` replace the draw by all K values at once, in a
new dimension to the left of the plate: `z` then has shape (K, 1), `locs[z]` (K, 1, D), and x scores (K, N).

*Guide.* For discrete z the exact posterior is at hand: the responsibilities (F7.1). With `guide` the lower
bound F7.2 touches log p(x) (the gap of F2 is 0); with a guide that samples nothing, Pyro sums z out of the
model itself. Both give the same number, and the same gradient with q held fixed, as step 1 of EM does (F5).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


def model(data: Tensor, weights: Tensor, locs: Tensor, scale_trils: Tensor) -> None:
    """F7: data (N, D), weights (K,), locs (K, D), lower Cholesky factors scale_trils (K, D, D)."""
    with pyro.plate("rows", len(data)):
        z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(locs[z], scale_tril=scale_trils[z]), obs=data)


def log_joint(data: Tensor, weights: Tensor, locs: Tensor, scale_trils: Tensor) -> Tensor:
    """F7: log π_k + log p_k(x_d), shape (N, K); its softmax over classes is the responsibilities (F7.1)."""
    log_density = dist.MultivariateNormal(locs, scale_tril=scale_trils).log_prob(data[:, None])
    total: Tensor = weights.log() + log_density
    return total


def guide(data: Tensor, weights: Tensor, locs: Tensor, scale_trils: Tensor) -> None:
    """Step 1 of EM (F5) as q(z|x): the exact posterior at these parameters, held fixed while θ moves."""
    with torch.no_grad():
        logits = log_joint(data, weights, locs, scale_trils)
    with pyro.plate("rows", len(data)):
        pyro.sample("z", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def main() -> None:
    """Score six points under two classes: the bound with the exact posterior is the log-likelihood itself."""
    data = torch.tensor([[-2.0, 0.1], [-1.8, -0.3], [-2.3, 0.2], [2.1, 0.0], [1.7, 0.4], [2.2, -0.2]])
    theta = (
        torch.tensor([0.5, 0.5]),
        torch.tensor([[-2.0, 0.0], [2.0, 0.0]]),
        torch.eye(2).expand(2, 2, 2) * 0.3,
    )
    objective = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    print("classes       ", log_joint(data, *theta).argmax(-1).tolist())
    print("lower bound   ", -objective.loss(model, guide, data, *theta))
    print("log-likelihood", -objective.loss(model, lambda *_: None, data, *theta))


if __name__ == "__main__":
    main()
