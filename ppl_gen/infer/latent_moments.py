"""Of a continuous latent: its posterior's mean and variance by row, and the KL of each of its dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_gen.infer.elbo import Sites
from ppl_gen.program.families.cells import CellVector
from ppl_gen.program.families.flow import FlowDistribution
from ppl_gen.program.families.multivariate_normal import CholeskyNormal
from ppl_gen.program.families.normal import LOG_2PI, DiagonalNormal
from ppl_gen.program.program import Program

Expectation = Callable[[Tensor], Tensor]


@dataclass
class Moments:
    """Sums over draws of what is known of one continuous latent, each (N, D).

    Args:
        kl: Σ κ_j, the terms of KL(q ‖ p) of each dimension; None where q or p does not factorise.
        log_prior: Σ log p(z_j); None where the prior has no known density of one dimension.
        mean: Σ of the guide's means.
        square: Σ of their squares.
        variance: Σ of the guide's variances.

    """

    kl: Tensor | None
    log_prior: Tensor | None
    mean: Tensor
    square: Tensor
    variance: Tensor

    def __add__(self, other: Moments) -> Moments:
        def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
            return None if a is None or b is None else a + b

        return Moments(
            both(self.kl, other.kl),
            both(self.log_prior, other.log_prior),
            self.mean + other.mean,
            self.square + other.square,
            self.variance + other.variance,
        )


@dataclass
class Latent:
    """One latent of each row.

    Args:
        kl: KL(q ‖ p) of the row, (N,); of a discrete latent that the model sums out KL(p(c | x) ‖ p(c)).
        cells: that of each dimension's marginal, (N, D); None where it is not known.
        mean: of the posterior, (N, D); None of a discrete latent.
        variance: of the posterior, (N, D).
        mean_error: the standard error of `mean` over draws, (N, D).

    """

    kl: Tensor
    cells: Tensor | None = None
    mean: Tensor | None = None
    variance: Tensor | None = None
    mean_error: Tensor | None = None


def moments_of(
    program: Program,
    sites: Sites,
    name: str,
    value: Tensor,
    over_guide: Expectation,
    over_classes: Expectation,
    axes: int,
) -> tuple[Moments, Tensor]:
    """Of one continuous latent: sums over the draws, and κ of each of them, (S, N)."""
    q, p = sites.q_laws[name], sites.p_laws[name]

    def leading(each: Tensor) -> Tensor:
        """(batch, D) → (D, batch), the batch of as many axes as all others."""
        return each.reshape((1,) * (axes + 1 - each.ndim) + each.shape).movedim(-1, 0)

    log_q, log_p = _log_cells(q, value, factorised=True), _log_cells(p, value, factorised=False)
    prior = None if log_p is None else over_guide(over_classes(leading(log_p)))  # (D, S, N)
    cells = None
    if _closed_form(program, sites, name):
        ratio, apart = (q.scale / p.scale).square(), ((q.loc - p.loc) / p.scale).square()
        cells = over_guide(leading(0.5 * (ratio + apart - 1 - ratio.log())))
    elif log_q is not None and prior is not None and not isinstance(p, CholeskyNormal):
        cells = over_guide(leading(log_q)) - prior
    kl = over_guide(sites.q[name] - over_classes(sites.p[name])) if cells is None else cells.sum(0)
    try:
        if isinstance(q, FlowDistribution):  # its moments are known from draws alone
            raise NotImplementedError
        mean, variance = leading(q.mean), leading(q.variance)
    except NotImplementedError:
        mean = leading(value)
        variance = torch.zeros_like(mean)
    middle = over_guide(mean)
    within = over_guide(variance)
    if sites.q_axes:  # between the guide's classes too
        within = within + (over_guide(mean.double().square()) - middle.double().square()).clamp(min=0)

    def summed(each: Tensor | None) -> Tensor | None:
        return None if each is None else each.sum(-2, dtype=torch.float64).T  # (D, S, N) → (N, D)

    own = [summed(each) for each in (middle, middle.double().square(), within)]
    return Moments(summed(cells), summed(prior), *own), kl  # type: ignore[arg-type]


def _closed_form(program: Program, sites: Sites, name: str) -> bool:
    """Whether KL(q ‖ p) of two normals may stand for log q − log p at the draws.

    Not where the prior depends on what the guide draws after this latent, whose law then depends on its draw; nor
    where it depends on a class that is summed out, whose posterior does.
    """
    p = sites.p[name]
    if any(p.ndim >= -axis and p.shape[axis] > 1 for axis in sites.summed):
        return False
    drawn = list(program.recognition.draws)
    later = drawn[drawn.index(name) :]
    normal = all(isinstance(law[name], DiagonalNormal) for law in (sites.q_laws, sites.p_laws))
    return normal and not {*program.spec.node_parents(name)}.intersection(later)


def _log_cells(law: Any, value: Tensor, *, factorised: bool) -> Tensor | None:
    """The log-density of each dimension's marginal, (…, N, D); None where it is not known."""
    if isinstance(law, CellVector):
        cells: Tensor = law.log_cells(value)
        return cells
    if isinstance(law, DiagonalNormal):
        loc, scale = law.loc, law.scale
    elif isinstance(law, CholeskyNormal) and not factorised:
        loc, scale = law.loc, law.scale_tril.square().sum(-1).sqrt()
    else:
        return None
    log_density: Tensor = -0.5 * (((value - loc) / scale).square() + LOG_2PI) - scale.log()
    return log_density


def latent_of(kl: Tensor, moments: Moments, draws: int) -> Latent:
    """From sums to the row's posterior moments and the KL of each dimension.

    Where the guide does not factorise, a dimension's KL is that of the normal with its posterior's variance: right
    where the marginal is normal, as under a full covariance, and too small elsewhere, a normal having the most
    entropy of all laws with its variance.
    """
    mean = moments.mean / draws
    between = (moments.square / draws - mean.square()).clamp(
        min=0
    )  # over draws of other latents, or of its own
    between = between * (draws / max(draws - 1, 1))
    variance = moments.variance / draws + between
    if moments.kl is not None:
        cells = moments.kl / draws
    elif moments.log_prior is not None:
        cells = -0.5 * (1 + LOG_2PI + variance.log()) - moments.log_prior / draws
    else:
        cells = None
    return Latent(kl, cells, mean, variance, (between / draws).sqrt())
