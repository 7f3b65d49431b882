"""What SVI climbs: the ELBO and its relatives, row by row, from the sites of Pyro's traces."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.elbo import Half, Sites, TraceableELBO
from ppl_gen.infer.enumeration import sum_out


@dataclass(frozen=True)
class Objective:
    """The bound of each row that a run climbs, as `SVI` asks for it.

    With r_d = log p(x_d | z) and, for each latent of the guide, κ_d = log q(z | x_d) − log p(z) at the draw:

    - "elbo": r_d − β Σ κ_d, its mean over C draws (F2, F9.4);
    - `analytic`: KL(q ‖ p) in closed form in κ's place where Pyro has one for the pair of families: the same
      expectation, a smaller variance;
    - `free_bits` λ: a latent of D dimensions whose κ is below λ·D in the batch's mean counts as λ·D, without a
      gradient (Kingma et al. 2016);
    - `importance`: log (1/C) Σ_c p(x_d, z_c)/q(z_c | x_d) (E3; Burda, Grosse & Salakhutdinov 2016).

    Args:
        particles: C.
        importance: whether the bound is the importance-weighted one.
        analytic: whether KL parts are taken in closed form.
        free_bits: λ, in nats for a dimension; 0 for none.

    """

    particles: int = 1
    importance: bool = False
    analytic: bool = False
    free_bits: float = 0.0

    @staticmethod
    def of(algorithm: SVI) -> Objective:
        """As the algorithm says."""
        importance, analytic = algorithm.objective == "iwae", algorithm.kl == "analytic"
        return Objective(algorithm.particles, importance, analytic, algorithm.free_bits)

    def per_row(
        self, model: Half, guide: Half, rows: Mapping[str, Tensor], beta: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is climbed, and the bound on log p(x_d) itself, with β = 1 and no free bits: (N,), (N,).

        `beta` is a scalar; None: 1.
        """
        sites = TraceableELBO(self.particles).sites(model, guide, rows)
        if self.importance:
            bound = _log_weights(sites).reshape(self.particles, -1).logsumexp(0) - math.log(self.particles)
            return bound, bound
        inside = [
            name for name in sites.q if meets_summed(sites, name)
        ]  # as z ~ N(loc of c, …), c summed out
        rest = [p for name, p in sites.p.items() if name not in sites.q]
        plain = climbed = sum_out([*rest, *(sites.p[name] for name in inside)], sites.summed)
        if inside and beta is not None:
            climbed = sum_out([*rest, *(beta * sites.p[name] for name in inside)], sites.summed)
        weights = reduce(add, (sites.q[name] for name in sites.q_axes), torch.zeros_like(plain))
        axes = tuple(sites.q_axes.values())

        def expected(term: Tensor) -> Tensor:
            """Its mean over what the guide enumerates and over the draws: (N,)."""
            term, w, _ = torch.broadcast_tensors(term, weights, plain)
            if axes:
                term = (w.exp() * term).sum(axes, keepdim=True)
            return term.reshape(self.particles, -1).mean(0)

        parts = {n: expected(q if n in inside else self._kl(sites, n)) for n, q in sites.q.items()}
        bound = reduce(torch.sub, parts.values(), expected(plain))
        if beta is None and not self.free_bits:
            return bound, bound
        floored = (self._floored(sites, name, part) for name, part in parts.items())
        scale = 1.0 if beta is None else beta
        return reduce(torch.sub, (scale * part for part in floored), expected(climbed)), bound

    def _kl(self, sites: Sites, name: str) -> Tensor:
        """Log q − log p of one latent at its draw, or its expectation: (…, N)."""
        if self.analytic and name not in sites.q_axes:
            try:
                own: Tensor = kl_divergence(sites.q_laws[name], sites.p_laws[name])
            except NotImplementedError:  # no closed form for this pair
                return sites.q[name] - sites.p[name]
            return own
        return sites.q[name] - sites.p[name]

    def _floored(self, sites: Sites, name: str, part: Tensor) -> Tensor:
        if not self.free_bits:
            return part
        least = self.free_bits * sites.q_laws[name].event_shape.numel()
        return torch.where(part.mean() > least, part, torch.full_like(part, least))


def meets_summed(sites: Sites, name: str) -> bool:
    """Whether a latent's prior varies along an axis that the model sums out."""
    p = sites.p[name]
    return any(p.ndim >= -axis and p.shape[axis] > 1 for axis in sites.summed)


def _log_weights(sites: Sites) -> Tensor:
    """Log p(x, z) − log q(z | x) at the draws, discrete latents summed out."""
    log_p = sum_out(list(sites.p.values()), sites.summed)
    drawn = [q for name, q in sites.q.items() if name not in sites.q_axes]
    ratio = reduce(torch.sub, drawn, log_p)
    axes = tuple(sites.q_axes.values())
    return ratio.logsumexp(axes, keepdim=True) if axes else ratio
