"""The multivariate normal, or t, with missing cells: the density of the others, and what they say of those.

Rows with the same cells missing share one factorisation: M patterns (M, D) of ones and zeros, and each row's
pattern (N,). The covariance of the seen cells is Σ on them and the identity on the others, which adds nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Seen:
    """Which cells of which row are seen.

    Args:
        patterns: (M, D), 1 where a cell is seen.
        pattern: of each row (N,); None where every row has a pattern of its own, M = N.

    """

    patterns: Tensor
    pattern: Tensor | None = None

    @property
    def cells(self) -> Tensor:
        """The marks row by row, (N, D)."""
        return self.of_rows(self.patterns, -2)

    def of_rows(self, by_pattern: Tensor, axis: int) -> Tensor:
        """A tensor with an axis of patterns, with one of rows in its place."""
        return by_pattern if self.pattern is None else by_pattern.index_select(axis, self.pattern)


def seen_factor(scale_tril: Tensor, patterns: Tensor) -> Tensor:
    """Cholesky factors of Σ on the seen cells and I on the others: (…E, D, D), (M, D) → (…E, M, D, D)."""
    covariance = (scale_tril @ scale_tril.mT).unsqueeze(-3)
    both = patterns.unsqueeze(-1) * patterns.unsqueeze(-2)  # (M, D, D)
    factor, _ = torch.linalg.cholesky_ex(covariance * both + torch.diag_embed(1 - patterns))
    return factor


def log_density(loc: Tensor, scale_tril: Tensor, value: Tensor, seen: Seen) -> Tensor:
    """Log N of the seen cells: loc (…E, D), scale_tril (…E, D, D), value (N, D) → (…E, N)."""
    squared, log_det = squared_distance(loc, scale_tril, value, seen)
    return -log_det - 0.5 * LOG_2PI * seen.cells.sum(-1) - 0.5 * squared


def squared_distance(loc: Tensor, scale_tril: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """|L⁻¹(x − μ)|² and log |L| of the seen cells, (…E, N) each; see `log_density`."""
    factor = seen_factor(scale_tril, seen.patterns)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (…E, M)
    apart = (value - loc.unsqueeze(-2)) * seen.cells  # (…E, N, D)
    return (_solved(factor, apart, seen) ** 2).sum(-1), seen.of_rows(log_det, -1)


def completed(loc: Tensor, scale_tril: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """E[x | seen cells] (…E, N, D), and by pattern Cov[x | seen cells] (…E, M, D, D), 0 on the seen ones."""
    covariance = scale_tril @ scale_tril.mT
    factor = seen_factor(scale_tril, seen.patterns)
    lacking = 1 - seen.patterns
    # Σ_mo Σ_oo⁻¹, rows of missing cells and columns of seen ones
    across = covariance.unsqueeze(-3) * lacking.unsqueeze(-1) * seen.patterns.unsqueeze(-2)
    regression = torch.cholesky_solve(across.mT, factor).mT
    left = covariance.unsqueeze(-3) * lacking.unsqueeze(-1) * lacking.unsqueeze(-2) - regression @ across.mT
    apart = (value - loc.unsqueeze(-2)) * seen.cells
    expected = (seen.of_rows(regression, -3) @ apart.unsqueeze(-1)).squeeze(-1) + loc.unsqueeze(-2)
    return torch.where(seen.cells > 0, value, expected), left


def expected_statistics(
    weights: Tensor,
    loc: Tensor,
    scale_tril: Tensor,
    value: Tensor,
    seen: Seen,
    precision: Tensor | None = None,
) -> Tensor:
    """Σ_n w_n E[(1, x, lower triangle of x xᵀ) | seen cells]: weights (…E, N) → (…E, 1 + D + D(D+1)/2).

    With a `precision` u of each row (…E, N), as a t has it, Σ_n w_n E[u·(1, x, x xᵀ) | seen cells]: there the
    covariance of what is missing is Σ's over u, so that its part counts w alone.
    """
    D = value.shape[-1]
    expected, left = completed(loc, scale_tril, value, seen)
    counted = weights if precision is None else weights * precision
    weighted = expected * counted.unsqueeze(-1)
    second = weighted.mT @ expected  # (…E, D, D)
    by_pattern = weights
    if seen.pattern is not None:
        by_pattern = weights.new_zeros((*weights.shape[:-1], len(seen.patterns))).index_add(
            -1, seen.pattern, weights
        )
    second = second + (by_pattern.unsqueeze(-1).unsqueeze(-1) * left).sum(-3)
    rows, columns = torch.tril_indices(D, D, device=value.device)
    packed = second.flatten(-2).index_select(-1, rows * D + columns)
    return torch.cat([counted.sum(-1, keepdim=True), weighted.sum(-2), packed], -1)


def log_density_by_row(loc: Tensor, scale_tril: Tensor, value: Tensor, seen: Seen) -> Tensor:
    """`log_density` where parameters differ from row to row: loc (…, N, D), scale_tril (…, N or 1, D, D)."""
    squared, log_det = squared_distance_by_row(loc, scale_tril, value, seen)
    return -log_det - 0.5 * LOG_2PI * seen.cells.sum(-1) - 0.5 * squared


def squared_distance_by_row(
    loc: Tensor, scale_tril: Tensor, value: Tensor, seen: Seen
) -> tuple[Tensor, Tensor]:
    """`squared_distance` where parameters differ from row to row."""
    factor = _factor_by_row(scale_tril, seen.cells)
    apart = ((value - loc) * seen.cells).unsqueeze(-1)
    factor = factor.expand((*apart.shape[:-2], *factor.shape[-2:]))
    standard = torch.linalg.solve_triangular(factor, apart, upper=False).squeeze(-1)
    return (standard**2).sum(-1), factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def completed_by_row(loc: Tensor, scale_tril: Tensor, value: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """`completed` where parameters differ from row to row, the covariance by row too."""
    cells, lacking = seen.cells, 1 - seen.cells
    covariance, factor = scale_tril @ scale_tril.mT, _factor_by_row(scale_tril, cells)
    across = covariance * lacking.unsqueeze(-1) * cells.unsqueeze(-2)
    regression = torch.cholesky_solve(across.mT, factor).mT
    left = covariance * lacking.unsqueeze(-1) * lacking.unsqueeze(-2) - regression @ across.mT
    expected = (regression @ ((value - loc) * cells).unsqueeze(-1)).squeeze(-1) + loc
    return torch.where(cells > 0, value, expected), left


def noise_of(covariance: Tensor) -> Tensor:
    """A draw of N(0, covariance) for each row, (…, N, D), where seen cells have variance 0."""
    # A factor of a singular matrix, by its eigenvectors.
    spread, axes = torch.linalg.eigh(covariance)
    factor = axes * spread.clamp(min=0).sqrt().unsqueeze(-2)
    noise = torch.randn(covariance.shape[:-1], dtype=covariance.dtype, device=covariance.device)
    return (factor @ noise.unsqueeze(-1)).squeeze(-1)


def _factor_by_row(scale_tril: Tensor, cells: Tensor) -> Tensor:
    both = cells.unsqueeze(-1) * cells.unsqueeze(-2)
    factor, _ = torch.linalg.cholesky_ex(scale_tril @ scale_tril.mT * both + torch.diag_embed(1 - cells))
    return factor


def _solved(factor: Tensor, apart: Tensor, seen: Seen) -> Tensor:
    """L⁻¹(x − μ) for each row's own pattern: (…E, N, D)."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return (seen.of_rows(inverse, -3) @ apart.unsqueeze(-1)).squeeze(-1)
