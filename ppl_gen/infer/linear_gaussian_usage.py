"""What rows tell of the latents of a linear-Gaussian model, in closed form: posterior moments and KL (E1)."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.infer.enumeration import Rows, State
from ppl_gen.infer.latent_moments import Latent
from ppl_gen.infer.linear_gaussian import system_of
from ppl_gen.infer.linear_gaussian_posterior import posteriors
from ppl_gen.program.marks import seen_key
from ppl_gen.program.program import Program


def exact_latents(program: Program, state: State, rows: Rows) -> tuple[Tensor, dict[str, Latent]]:
    """Log p(x_d), (N,), and of each latent its exact posterior beside its prior.

    The KLs of several latents add up to that of all of them: KL(q(z₁) ‖ p(z₁)), then what z₂ adds to it, and so
    on in model order. A dimension's KL is that of its marginal.

    Example:
        >>> from ppl_gen import Linear, Normal, Spec
        >>> from ppl_gen.program.program import compile_spec
        >>> spec = Spec(model=dict(z=Normal(1, loc=0, scale=1), x=Normal(1, loc=Linear("z"), scale=1)))
        >>> program = compile_spec(spec, {"x": [[0.0], [2.0]]}, dtype=torch.float64)
        >>> state = {path: torch.zeros_like(value) for path, value in program.state_dict().items()}
        >>> state = {path: value + ("weight" in path) for path, value in state.items()}  # x = z + noise
        >>> log_p, latents = exact_latents(program, state, {"x": torch.zeros(1, 1)})
        >>> log_p, latents["z"].kl  # log N(0 | 0, 2); (1/2 − 1 + log 2)/2
        (tensor([-1.2655], dtype=torch.float64), tensor([0.0966], dtype=torch.float64))

    """
    system = system_of(program)
    n = len(next(iter(rows.values())))
    widths = {e.name: e.width for e in system.equations}
    unseen = {seen_key(name): torch.zeros(n, widths[name]) for name in system.observed}
    (prior,) = posteriors(program, state, {**rows, **unseen})
    places = {name: system.places((name,)) for name in system.latent}
    log_density = torch.zeros(n, dtype=torch.float64)
    mean = torch.zeros(n, system.size, dtype=torch.float64)
    variance, joint = torch.zeros_like(mean), torch.zeros(n, len(system.latent), dtype=torch.float64)
    for part in posteriors(program, state, rows):
        log_density[part.rows], mean[part.rows] = part.log_density, part.mean
        variance[part.rows] = part.covariance.diagonal()
        for i in range(len(system.latent)):
            cells = system.places(system.latent[: i + 1])
            square = cells[:, None], cells
            apart = (part.mean - prior.mean[part.rows])[:, cells]
            joint[part.rows, i] = _kl(part.covariance[square], prior.covariance[square], apart)
    added = joint.diff(dim=1, prepend=torch.zeros(n, 1, dtype=torch.float64))
    found = {}
    for i, (name, own) in enumerate(places.items()):
        ratio = variance[:, own] / prior.covariance.diagonal()[own]
        apart = (mean - prior.mean)[:, own].square() / prior.covariance.diagonal()[own]
        cells = 0.5 * (ratio + apart - 1 - ratio.log())
        exact = torch.zeros_like(cells)
        found[name] = Latent(added[:, i], cells, mean[:, own], variance[:, own], exact)
    return log_density, found


def _kl(covariance: Tensor, prior: Tensor, apart: Tensor) -> Tensor:
    """KL(N(μ_d, C) ‖ N(m_d, P)) with apart = μ_d − m_d, (N, D): (N,)."""
    own, factor = torch.linalg.cholesky(covariance), torch.linalg.cholesky(prior)
    spread = torch.linalg.solve_triangular(factor, own, upper=False).square().sum()
    distance = torch.linalg.solve_triangular(factor, apart.mT, upper=False).square().sum(0)
    logs = 2 * (factor.diagonal().log().sum() - own.diagonal().log().sum())
    return 0.5 * (spread + distance - len(covariance) + logs)
