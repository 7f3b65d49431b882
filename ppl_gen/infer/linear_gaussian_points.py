"""The numbers that EM of a linear-Gaussian model moves, and those that follow from them.

References: Lawley (1940); Tipping & Bishop (1999), https://doi.org/10.1111/1467-9868.00196
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_gen.infer.coordinates import Coordinates
from ppl_gen.infer.linear_gaussian import Joint, System
from ppl_gen.infer.linear_gaussian_rows import Moments
from ppl_gen.infer.standard import VARIANCE_FLOOR
from ppl_gen.program.constraints import pack_tril, unpack_tril

LEAST = 0.5 * math.log(VARIANCE_FLOOR)  # logarithm of the least scale


class Points(Coordinates):
    """The numbers that EM moves, as one vector: coefficients, unless they follow from the noise, and scales.

    Args:
        system: the equations.
        start: all numbers, in units; those that are not moved stay.
        loadings: gives the coefficients from the noise, or None.

    """

    def __init__(self, system: System, start: Joint, loadings: Loadings | None) -> None:
        self.system, self.start, self.loadings = system, start, loadings
        self.observed = [e for e in system.equations if e.name in system.observed]
        rows: list[int] = []
        columns: list[int] = []
        for e in system.equations if loadings is None else ():
            moved = [*e.places, *([system.constant] if e.learned is not None else [])]
            for row in range(e.own.start, e.own.stop):
                rows += [row] * len(moved)
                columns += moved
        self.learned = torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)
        self.spans = dict[str, slice]()
        at = len(rows)
        for e in system.equations:
            size = {"each": e.width, "shared": 1, "full": e.width * (e.width + 1) // 2, "fixed": 0}[e.noise]
            self.spans[e.name] = slice(at, at + size)
            at += size
        self.log_scales = torch.zeros(at, dtype=torch.bool)
        for e in system.equations:
            self.log_scales[self.spans[e.name]] = e.noise in ("each", "shared")

    def pack(self, joint: Joint) -> Tensor:
        """(P,)."""
        parts = [joint.coefficients[self.learned]]
        for e in self.system.equations:
            block = joint.noise[e.own, e.own]
            if e.noise == "full":
                parts.append(pack_tril(torch.linalg.cholesky_ex(block).L))
            elif e.noise != "fixed":
                logs = 0.5 * block.diagonal().log()
                parts.append(logs if e.noise == "each" else logs[:1])
        return torch.cat(parts)

    def joint(self, point: Tensor) -> Joint:
        """All numbers at a point (P,)."""
        blocks = []
        for e in self.system.equations:
            own = point[self.spans[e.name]]
            if e.noise == "fixed":
                blocks.append(self.start.noise[e.own, e.own])
            elif e.noise == "full":
                factor = unpack_tril(own)
                blocks.append(factor @ factor.mT)
            else:
                blocks.append(torch.diag((2 * own).exp().expand(e.width)))
        noise = torch.block_diag(*blocks)
        if self.loadings is not None:
            return self.loadings.best(self.start, noise)
        coefficients = self.start.coefficients.clone()
        coefficients[self.learned] = point[: len(self.learned[0])]
        return Joint(coefficients, noise)

    def variances(self, point: Tensor) -> Tensor:
        """The noise of the observed columns, where it has no covariances: (D,)."""
        parts = []
        for e in self.observed:
            own = (2 * point[self.spans[e.name]]).exp()
            parts.append(
                self.start.noise[e.own, e.own].diagonal() if e.noise == "fixed" else own.expand(e.width)
            )
        return torch.cat(parts)

    def from_variances(self, left: Tensor) -> Tensor:
        """The inverse, of mean variances where one is shared, none below the floor."""
        parts, at = [torch.zeros(0, dtype=torch.float64)], 0
        for e in self.observed:
            own = left[at : at + e.width]
            at += e.width
            if e.noise != "fixed":
                parts.append(own if e.noise == "each" else own.mean().unsqueeze(0))
        return 0.5 * torch.cat(parts).clamp(min=VARIANCE_FLOOR).log()

    def measured(self, flat: Tensor) -> Tensor:
        """Variances as shares of their columns' own, where 0 is as near as it is; the rest as it is."""
        return torch.where(self.log_scales, (2 * flat).exp(), flat)

    def inside(self, flat: Tensor) -> Tensor:
        """No variance below its floor."""
        return torch.where(self.log_scales, flat.clamp(min=LEAST), flat)


class Loadings:
    """The best loadings for given noise, where every latent is N(0, s²) and enters every column (E1).

    With S the covariance of the columns given the Inputs and Ψ^−½ S Ψ^−½ = U Λ Uᵀ, they are Ψ^½ U (Λ − I)^½ for
    the largest of Λ. Whatever the noise, the regressions on the Inputs are least squares.
    """

    def __init__(self, system: System, start: Joint, moments: Moments) -> None:
        self.columns, self.latents = system.places(system.observed), system.places(system.latent)
        (e, *_) = [e for e in system.equations if e.name in system.observed]
        inputs = [place for place in e.places if place >= system.size]
        free = [*inputs, *([system.constant] if e.learned is not None else [])]
        self.free = torch.tensor(free, dtype=torch.int64)
        D, R = len(self.columns), system.constant + 1 - system.size
        written = torch.zeros(D, D + R, dtype=torch.float64)
        written[:, :D] = torch.eye(D, dtype=torch.float64)
        if e.learned is None:
            written[:, -1] = -start.coefficients[self.columns, -1]
        given = torch.eye(D + R, dtype=torch.float64)[self.free - system.size + D]
        squares = moments.squares[0]
        across = written @ squares @ given.mT
        self.regression = solved(given @ squares @ given.mT, across)  # (D, F)
        rest = written @ squares @ written.mT - self.regression @ across.mT
        self.count = float(moments.counts[0])
        self.covariance = (rest + rest.mT) / 2 / self.count
        self.scales = start.noise.diagonal()[self.latents].sqrt()

    @staticmethod
    def obstacle(system: System, start: Joint, moments: Moments) -> bool:
        """Whether the loadings have to be moved step by step."""
        latents = set(system.places(system.latent).tolist())
        above = [e for e in system.equations if e.name in system.latent]
        below = [e for e in system.equations if e.name in system.observed]
        centred = not bool(start.coefficients[list(latents), -1].any())
        roots = all(not e.weights and e.learned is None and e.noise == "fixed" for e in above)
        alone = all(bool((start.noise[e.own, e.own].triu(1) == 0).all()) for e in above)
        same = {(frozenset(e.places), e.learned is None) for e in below}
        inputs = {place for e in below for place in e.places} - latents
        whole = len(same) == 1 and latents <= next(iter(same))[0] and all(p >= system.size for p in inputs)
        simple = all(e.noise != "full" for e in below) and all(
            bool((start.noise[e.own, e.own].triu(1) == 0).all()) for e in below
        )
        return not (centred and roots and alone and whole and simple and moments.complete)

    def best(self, start: Joint, noise: Tensor) -> Joint:
        """All numbers with this noise and its best loadings."""
        weights = self._weights(noise.diagonal()[self.columns])
        coefficients = start.coefficients.clone()
        coefficients[self.columns[:, None], self.latents[: weights.shape[1]]] = weights
        coefficients[self.columns[:, None], self.latents[weights.shape[1] :]] = 0.0
        coefficients[self.columns[:, None], self.latents] /= self.scales
        coefficients[self.columns[:, None], self.free] = self.regression
        return Joint(coefficients, noise)

    def step(self, variances: Tensor) -> tuple[float, Tensor]:
        """Log p of all rows under these noise variances and their best loadings W, and EM's next variances, (D,).

        At those loadings W an M-step for the noise is diag(S − W Wᵀ).
        """
        weights = self._weights(variances)
        explained = weights @ weights.mT
        factor, info = torch.linalg.cholesky_ex(explained + torch.diag(variances))
        if bool(info):
            return -math.inf, variances
        trace = torch.cholesky_solve(self.covariance, factor).diagonal().sum()
        logs = 2 * factor.diagonal().log().sum() + len(variances) * math.log(2 * math.pi)
        return -0.5 * self.count * float(trace + logs), (self.covariance - explained).diagonal()

    def _weights(self, variances: Tensor) -> Tensor:
        root = variances.sqrt().unsqueeze(1)
        values, vectors = torch.linalg.eigh(self.covariance / (root * root.mT))
        kept = min(len(self.latents), len(values))
        return root * vectors[:, -kept:].flip(1) * (values[-kept:].flip(0) - 1).clamp(min=0).sqrt()


def solved(matrix: Tensor, right: Tensor) -> Tensor:
    """X with X · matrix = right, (…, F): the least one where the matrix is singular, as equal columns make it."""
    if not len(matrix):
        return torch.zeros_like(right)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not bool(info.any()) and float(factor.diagonal().min()) > 1e-7 * float(factor.diagonal().max()):
        return torch.cholesky_solve(right.mT, factor).mT
    values, vectors = torch.linalg.eigh(matrix)
    inverse = torch.where(values > 1e-12 * values[-1], 1 / values, 0.0)
    return right @ vectors * inverse @ vectors.mT
