"""Student's t over all dimensions at once: one weight a row, the scale matrix kept as its Cholesky factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.program.families import missing_normal
from ppl_gen.program.families.base import LazyDistribution, Site, Sizes, about_middle, as_rows, is_outer
from ppl_gen.program.families.cells import pool
from ppl_gen.program.families.multivariate_normal import (
    CholeskyNormal,
    MultivariateNormalFamily,
    _symmetric,
    apart_where_constant,
    quadratic_features,
)
from ppl_gen.program.families.normal import ECM_CYCLES
from ppl_gen.program.families.student_t import (
    DF_BEGINNING,
    at_jumps,
    best_jump,
    degrees_of_freedom,
    expanded,
    expansion,
    expected_weight,
    jump_or,
    log_constant,
    precision_density,
)


class CholeskyStudentT(LazyDistribution):
    """Student's t with scale matrix L Lᵀ: df (*batch, 1), loc (*batch, D) and L (*batch, D, D)."""

    has_rsample = True
    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {
        "df": constraints.independent(constraints.positive, 1),
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }

    def __init__(
        self, df: Tensor, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None
    ) -> None:
        self.df, self.loc, self.scale_tril = df, loc, scale_tril
        batch = torch.broadcast_shapes(df.shape[:-1], loc.shape[:-1], scale_tril.shape[:-2])
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The location over the whole batch; not a number where df ≤ 1."""
        return torch.where(self.df > 1, self.loc, math.nan).expand(self._batch_shape + self._event_shape)

    @property
    def variance(self) -> Tensor:
        """The covariance's diagonal over the whole batch; infinite where df ≤ 2, and no number where df ≤ 1."""
        finite = (
            (self.scale_tril**2).sum(-1) * self.df / (self.df - 2).clamp(min=torch.finfo(self.df.dtype).tiny)
        )
        heavy = torch.where(self.df > 1, math.inf, math.nan)
        return torch.where(self.df > 2, finite, heavy).expand(self._batch_shape + self._event_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A normal draw over the square root of a gamma one, the same for all dimensions."""
        shape = self._draw_shape(sample_shape)
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        half = (self.df / 2).expand((*shape[:-1], 1))
        precision = (torch._standard_gamma(half) / half).clamp(min=torch.finfo(self.df.dtype).tiny)
        return self.loc + (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1) * precision.rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log t of the whitened distance."""
        if self._validate_args:
            self._validate_sample(value)
        D, df = value.shape[-1], self.df.squeeze(-1)
        if self.seen is not None:  # the marginal of a t is a t, with the same df
            squared, volume = self._of_seen(value)
            count = self.seen.cells.sum(-1)
            tail = (df + count) / 2 * torch.log1p(squared / df)
            return self._over_batch(log_constant(df, count) - volume - tail, value.shape[:-1])
        squared = squared_distance(self.loc, self.scale_tril, value)
        volume = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        tail = (df + D) / 2 * torch.log1p(squared / df)
        return self._over_batch(log_constant(df, D) - volume - tail, value.shape[:-1])

    def given_seen(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """E[x | seen cells] (…, N, D), and the scale matrix that the missing cells keep (…, N, D, D).

        Where df and seen cells together are 1 or less there is no mean: then the location.
        """
        normal = CholeskyNormal(self.loc, self.scale_tril).where_seen(self.seen)
        return normal.given_seen(value)

    def sample_rest(self, value: Tensor) -> Tensor:
        """Rows (N, D) with the cells that are not seen drawn given those that are: x | x_o, u after u | x_o."""
        expected, left = self.given_seen(value)
        df = self.df.squeeze(-1)
        squared, _ = self._of_seen(value)
        shape = ((df + self.seen.cells.sum(-1)) / 2).expand_as(squared).contiguous()
        precision = torch._standard_gamma(shape) / ((df + squared) / 2)
        precision = precision.clamp(min=torch.finfo(df.dtype).tiny)
        noise = missing_normal.noise_of(left)
        return expected + noise * precision.rsqrt().unsqueeze(-1)

    def _of_seen(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distance and log volume of the seen cells, (…, N) each."""
        own = torch.broadcast_shapes(self.loc.shape[:-1], self.scale_tril.shape[:-2])
        if own and own[-1] != 1:
            return missing_normal.squared_distance_by_row(self.loc, self.scale_tril, value, self.seen)
        D = value.shape[-1]
        loc, factor = self.loc.expand((*own, D)), self.scale_tril.expand((*own, D, D))
        if own:
            loc, factor = loc.squeeze(-2), factor.squeeze(-3)
        return missing_normal.squared_distance(loc, factor, as_rows(value), self.seen)


def squared_distance(loc: Tensor, factor: Tensor, value: Tensor) -> Tensor:
    """|L⁻¹(x − loc)|² for loc (*batch, D), L (*batch, D, D) and rows (…, N, D): (…, N)."""
    rows, own = value.shape[:-1], torch.broadcast_shapes(loc.shape[:-1], factor.shape[:-2])
    if len(own) > 1 and is_outer(own, rows):
        loc, value = about_middle(loc, as_rows(value))
        eye = torch.eye(loc.shape[-1], dtype=loc.dtype, device=loc.device)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        centre = inverse @ loc.unsqueeze(-1)  # (…E, 1, D, 1)
        return ((inverse @ value.T - centre) ** 2).sum(-2).squeeze(-2)
    apart = (value - loc).unsqueeze(-1)
    batch = torch.broadcast_shapes(apart.shape[:-2], factor.shape[:-2])
    factor, apart = factor.expand(batch + factor.shape[-2:]), apart.expand(batch + apart.shape[-2:])
    return (torch.linalg.solve_triangular(factor, apart, upper=False) ** 2).sum((-2, -1))


class MultivariateStudentTFamily(MultivariateNormalFamily):
    """MultivariateStudentT(dim, df, loc, cov) or (…, scale_tril): F7.3 by the weights of a scale mixture."""

    adaptive = True
    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {}  # the normal's are not, with df to learn

    def axes(self, parameter: str, sizes: Sizes) -> tuple[int, ...]:
        """One number for df, (D,) for the location, the packed lower triangle for a matrix."""
        return (1,) if parameter == "df" else super().axes(parameter, sizes)

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> CholeskyStudentT:
        """Student's t with scale matrix L Lᵀ."""
        loc = working["loc"].expand((*working["loc"].shape[:-1], sizes.width))
        return CholeskyStudentT(working["df"], loc, working["cov" if "cov" in working else "scale_tril"])

    def closed_form(self, partly_fixed: frozenset[str], shared: frozenset[str]) -> str | None:
        """As for the normal."""
        reason = super().closed_form(partly_fixed, shared)
        return None if reason is None else reason.replace("MultivariateNormal", "MultivariateStudentT")

    def expected_statistics(
        self,
        weights: Tensor,
        value: Tensor,
        sizes: Sizes,
        *,
        seen: Any = None,
        current: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Σw, Σw·(u − log u − 1), gains of jumps, then Σwu, Σwux and Σwuxxᵀ.

        U is as expected at the current parameters. Of missing cells, what the seen ones say (Liu and Rubin, 1995).
        """
        assert current is not None
        name, own, D = "cov" if "cov" in current else "scale_tril", weights.shape[:-1], sizes.width
        if seen is None:
            squared = squared_distance(current["loc"].unsqueeze(-2), current[name].unsqueeze(-3), value)
            count: Tensor | int = D
        else:
            loc, factor = current["loc"].expand((*own, D)), current[name].expand((*own, D, D))
            squared, _ = missing_normal.squared_distance(loc, factor, value, seen)
            count = seen.cells.sum(-1)
        u, gap = expected_weight(current["df"], squared, count)
        if seen is None:
            wu = (weights * u).reshape(-1, weights.shape[-1])
            sums = (wu @ quadratic_features(value).T).reshape((*own, -1))
        else:
            sums = missing_normal.expected_statistics(weights, loc, factor, value, seen, u)
        jumps = at_jumps(current["df"], squared, count)
        each = (torch.ones_like(u), gap, *jumps)
        counts = torch.stack([(weights * part).sum(-1) for part in each], -1)
        return torch.cat([counts, sums], -1)

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A normal's estimates under the weights u, df by Newton's method; or a jump of df, if that gains more."""
        D, name = site.sizes.width, "cov" if "cov" in current else "scale_tril"
        n, gaps, *jumps, u, first, packed = statistics.split([1, 1, 1, 1, 1, D, D * (D + 1) // 2], -1)
        before = self._complete(n, u, first, _symmetric(packed, D), gaps, current, site)
        alpha = expansion(n, u, site.spread(current["df"], "df"), site, name)
        gaps = expanded(gaps, n, u, alpha)
        u, first, packed = u / alpha, first / alpha, packed / alpha
        second = _symmetric(packed, D)
        loc, factor = current["loc"], current[name]
        regular = torch.ones_like(statistics.sum(), dtype=torch.bool)
        for _ in range(1 if name in site.fixed or site.nested(name, "loc") else ECM_CYCLES):
            if "loc" not in site.fixed:
                loc = self._locate(u, first, loc, factor, name, site)
            if name not in site.fixed:
                middle = site.spread(loc, "loc")
                crossed = first.unsqueeze(-1) * middle.unsqueeze(-2)
                squares = middle.unsqueeze(-1) * middle.unsqueeze(-2) * u.unsqueeze(-1)
                scatter = site.gather(second - crossed - crossed.mT + squares, name)
                count = pool(n, site, name).unsqueeze(-1)
                if "loc" not in site.fixed:
                    scatter = apart_where_constant(scatter, jitter)
                factor, regular = self._factorise(scatter, count, factor, floor, jitter)
        found = {"df": degrees_of_freedom(n, gaps, current["df"], site), "loc": loc, name: factor}
        after = self._complete(n, u, first, second, gaps, found, site) - 0.5 * D * (n * alpha.log()).sum()
        return jump_or(found, regular, after - before, best_jump(jumps, n, current["df"], site), current)

    def _complete(
        self,
        n: Tensor,
        u: Tensor,
        first: Tensor,
        second: Tensor,
        gaps: Tensor,
        at: Mapping[str, Tensor],
        site: Site,
    ) -> Tensor:
        """Q of the rows and their precisions together, less constants: a scalar."""
        name = "cov" if "cov" in at else "scale_tril"
        factor, middle = at[name], site.spread(at["loc"], "loc")
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        inverse = site.spread(torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False), name)
        crossed = first.unsqueeze(-1) * middle.unsqueeze(-2)
        squares = middle.unsqueeze(-1) * middle.unsqueeze(-2) * u.unsqueeze(-1)
        scatter = second - crossed - crossed.mT + squares
        volume = inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1, keepdim=True)
        normal = n * volume - 0.5 * (inverse @ scatter * inverse).sum((-2, -1)).unsqueeze(-1)
        return (normal + precision_density(n, gaps, site.spread(at["df"], "df"))).sum()

    def rescale(self, working: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Loc and L in units of `scale`, from `shift`; df has no unit."""
        return {"df": working["df"], **super().rescale(working, shift, scale)}

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """Nearly normal, so that the first weights exclude no class."""
        factor = torch.diag_embed(spread)
        df = torch.full_like(centre[..., :1], DF_BEGINNING)
        return {"df": df, "loc": centre, "cov": factor, "scale_tril": factor}
