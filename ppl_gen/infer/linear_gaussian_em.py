"""Exact EM where every latent is linear-Gaussian: E1's posterior, regressions for the M-step, nothing drawn.

The E-step needs the second moments of the rows alone, so does the M-step. Where `Loadings` knows the best loadings
for given noise, EM moves the noise variances only, and probabilistic PCA is its own closed form. Elsewhere an
M-step also frees mean and covariance of the latents and takes them back into the loadings (PX-EM), which leaves the
law as it is and converges in far fewer steps than plain EM for factor analysis does.

References: Rubin & Thayer (1982), https://doi.org/10.1007/BF02293851; Liu, Rubin & Wu (1998), Parameter expansion
to accelerate EM, https://doi.org/10.1093/biomet/85.4.755
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_gen.infer.linear_gaussian import Equation, Joint, System
from ppl_gen.infer.linear_gaussian_points import Points, solved
from ppl_gen.infer.linear_gaussian_rows import Moments
from ppl_gen.infer.standard import VARIANCE_FLOOR

CHUNK = 2_000_000  # numbers of one batch of patterns


@dataclass(frozen=True)
class Expected:
    """What an E-step gives.

    Args:
        log_likelihood: of all rows, in units.
        squares: Σ w E[(v, r)(v, r)ᵀ | rows], (M + R, M + R).

    """

    log_likelihood: float
    squares: Tensor


def expectation(system: System, joint: Joint, moments: Moments) -> Expected:
    """Log p of all rows and the expected second moments of variables and regressors."""
    M, observed = system.size, system.places(system.observed)
    mean, covariance = joint.moments()
    D, R = len(observed), mean.shape[1]
    total, squares = 0.0, torch.zeros(M + R, M + R, dtype=torch.float64)
    step = max(1, CHUNK // (M + R) ** 2)
    for start in range(0, len(moments.counts), step):
        seen = moments.seen[start : start + step]  # (P, D)
        rows, counts = moments.squares[start : start + step], moments.counts[start : start + step]
        own = covariance[observed[:, None], observed] * seen[:, :, None] * seen[:, None, :]
        factor, info = torch.linalg.cholesky_ex(own + torch.diag_embed(1 - seen))
        if bool(info.any()):
            return Expected(-math.inf, squares)
        across = (covariance[observed] * seen[:, :, None]).expand(len(seen), D, M)
        gain = torch.cholesky_solve(across, factor).mT  # (P, M, D)
        known = torch.eye(D, dtype=torch.float64) * seen[:, :, None]
        gain[:, observed] = torch.where(seen[:, :, None] > 0, known, gain[:, observed])
        shift = mean - gain @ mean[observed]
        whole = torch.zeros(len(seen), M + R, D + R, dtype=torch.float64)
        whole[:, :M, :D], whole[:, :M, D:] = gain, shift
        whole[:, M:, D:] = torch.eye(R, dtype=torch.float64)
        squares += (whole @ rows @ whole.mT).sum(0)
        left = covariance - gain @ covariance[observed]
        left[:, observed] = left[:, observed] * (1 - seen)[:, :, None]
        left[:, :, observed] = left[:, :, observed] * (1 - seen)[:, None, :]
        squares[:M, :M] += torch.einsum("p,pij->ij", counts, (left + left.mT) / 2)
        rest = torch.cat([known, -mean[observed] * seen[:, :, None]], 2)
        quadratic = torch.cholesky_solve(rest @ rows @ rest.mT, factor).diagonal(dim1=1, dim2=2).sum()
        logs = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1) + seen.sum(1) * math.log(2 * math.pi)
        total -= 0.5 * float(counts @ logs + quadratic)
    return Expected(total, squares)


def maximisation(system: System, joint: Joint, squares: Tensor) -> Joint:
    """Every node regressed on what enters it, and what is left as its noise, no variance below the floor."""
    coefficients, noise = joint.coefficients.clone(), joint.noise.clone()
    count = squares[-1, -1]
    for e in system.equations:
        moved = torch.tensor([*e.places, *([system.constant] if e.learned is not None else [])])
        own = torch.arange(e.own.start, e.own.stop)
        M = system.size
        residual = torch.cat([-coefficients[own, :M], -coefficients[own, M:]], 1)
        if len(moved):
            residual[:, moved] = 0.0
        residual[:, own] = torch.eye(len(own), dtype=torch.float64)
        if len(moved):
            across = (residual @ squares)[:, moved]
            best = solved(squares[moved[:, None], moved], across)
            coefficients[own[:, None], moved] = best
            residual[:, moved] = -best
        if e.noise != "fixed":
            noise[e.own, e.own] = _noise(e, residual @ squares @ residual.mT / count)
    return Joint(coefficients, noise)


def _noise(e: Equation, scatter: Tensor) -> Tensor:
    """The likeliest noise of one kind for residuals with this second moment."""
    if e.noise == "full":
        values, vectors = torch.linalg.eigh((scatter + scatter.mT) / 2)
        return (vectors * values.clamp(min=VARIANCE_FLOOR)) @ vectors.mT
    variances = scatter.diagonal()
    if e.noise == "shared":
        variances = variances.mean().expand(e.width)
    return torch.diag(variances.clamp(min=VARIANCE_FLOOR))


def reduced(system: System, joint: Joint, squares: Tensor) -> Joint:
    """PX-EM's second half: the mean and covariance that the rows give each latent, taken into what it enters."""
    count, coefficients = squares[-1, -1], joint.coefficients.clone()
    for e in system.equations:
        fixed = e.learned is None and e.noise == "fixed" and not e.weights
        if e.name not in system.latent or not fixed:
            continue
        below = [c for c in system.equations if any(e.own.start <= p < e.own.stop for p in c.places)]
        own, middle = torch.arange(e.own.start, e.own.stop), coefficients[e.own, -1]
        if not all(set(own.tolist()) <= {*c.places} for c in below) or not below:
            continue
        shifting = all(c.learned is not None for c in below)
        if not shifting and bool(middle.any()):
            continue
        first = squares[own, -1] / count
        centre = first if shifting else middle
        about = squares[own[:, None], own] / count - torch.outer(first, first)
        about = about + torch.outer(first - centre, first - centre)
        factor, info = torch.linalg.cholesky_ex(about)
        written, wrong = torch.linalg.cholesky_ex(joint.noise[e.own, e.own])
        if bool(info.any() | wrong.any()):
            continue
        turn = torch.linalg.solve_triangular(written, factor, upper=False, left=False)  # L · L₀⁻¹
        for c in below:
            weight = coefficients[c.own, e.own].clone()
            coefficients[c.own, e.own] = weight @ turn
            if shifting:
                coefficients[c.own, -1] += weight @ (centre - turn @ middle)
    return Joint(coefficients, joint.noise)


def rotated(system: System, joint: Joint) -> tuple[Joint, bool]:
    """The loadings turned so that WᵀΨ⁻¹W is diagonal, largest first, and each column's sum positive; and whether.

    Any rotation of latents N(0, s² I) gives the same law; under this one they are independent given the rows.
    """
    above = [e for e in system.equations if e.name in system.latent]
    places = system.places(system.latent)
    below = [e for e in system.equations if set(places.tolist()) & {*e.places}]
    noise = joint.noise[places[:, None], places]
    free = all(not e.weights and e.learned is None and e.noise == "fixed" for e in above)
    round_ = bool((noise == noise[0, 0] * torch.eye(len(noise), dtype=noise.dtype)).all())
    whole = all(set(places.tolist()) <= {*e.places} for e in below)
    if not (free and round_ and whole) or bool(joint.coefficients[places].any()):
        return joint, False
    weights = joint.coefficients[:, places]
    _, vectors = torch.linalg.eigh(weights.mT @ torch.linalg.solve(joint.noise, weights))
    turned = weights @ vectors.flip(1)
    coefficients = joint.coefficients.clone()
    coefficients[:, places] = turned * torch.where(turned.sum(0) < 0, -1.0, 1.0)
    return Joint(coefficients, joint.noise), True


def step(points: Points, moments: Moments, point: Tensor) -> tuple[Tensor, Tensor]:
    """One evaluation of the EM map at a point (P,): the log-likelihood in units (1,), and the next point (1, P)."""
    if points.loadings is not None:
        value, left = points.loadings.step(points.variances(point))
        return torch.tensor([value], dtype=torch.float64), points.from_variances(left).unsqueeze(0)
    joint = points.joint(point)
    found = expectation(points.system, joint, moments)
    if not math.isfinite(found.log_likelihood):
        return torch.tensor([-math.inf], dtype=torch.float64), point.unsqueeze(0)
    new = maximisation(points.system, joint, found.squares)
    new = reduced(points.system, new, found.squares)
    return torch.tensor([found.log_likelihood], dtype=torch.float64), points.pack(new).unsqueeze(0)
