"""Student's t with independent dimensions, as a normal whose precision is drawn for every cell.

x | u ~ N(loc, scale²/u) with u ~ Gamma(df/2, df/2): the expected u given x is the weight of a cell, small far
out. The scale is divided by the sum of those weights, not by the number of rows: parameter-expanded EM (Liu,
Rubin and Wu, 1998), as monotone as the plain form and much faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.declare.continuous import StudentT
from ppl_gen.program.families.base import Family, Site, Sizes, at_least_tiny
from ppl_gen.program.families.cells import CellVector, narrow, pool, widened
from ppl_gen.program.families.gamma import POSITIVE
from ppl_gen.program.families.normal import ECM_CYCLES
from ppl_gen.program.families.shapes import LARGE, log_minus_digamma, shape_of_gap

LEAST_DF, LARGEST_DF = StudentT.bounds["df"]
DF_BEGINNING = 10.0
JUMPS = (0.25, 4.0)  # by which df may also move at once: EM crawls where tails are nearly normal
WORTH_IT = 1e-9  # nats a row that a jump must gain
LARGE_SINGLE = 5.0  # as `LARGE` is to double precision
ROUNDED = 8.0  # units in the last place a row that a jump must gain, where that is more
FINER_FLOOR = 1e-12  # of a normal's floor of variance: a column's spread may be its outliers'


def log_constant(df: Tensor, dimensions: Tensor | float = 1) -> Tensor:
    """Log Γ((df + D)/2) − log Γ(df/2) − D/2·log(df π), with all its digits whatever df."""
    half, step = df / 2, dimensions / 2
    exact = half > _series_from(df)
    big = torch.where(exact, half, 1e3)
    far = (big + step - 0.5) * torch.log1p(step / big) - step
    far = far + stirling_rest(big + step) - stirling_rest(big)
    near = torch.lgamma(half + step) - torch.lgamma(half) - step * half.log()
    return torch.where(exact, far, near) - step * math.log(2 * math.pi)


def stirling_rest(z: Tensor) -> Tensor:
    """Log Γ(z) − (z − ½) log z + z − ½ log 2π: the series behind Stirling's formula."""
    square = z**-2
    return (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680))) / z


def _series_from(like: Tensor) -> float:
    """From where on the series is exact, and better than a difference of large logarithms of Γ."""
    return LARGE if like.dtype == torch.float64 else LARGE_SINGLE


class StudentTVector(CellVector):
    """Independent cells: df, loc and scale (*batch, D)."""

    names = ("df", "loc", "scale")
    has_rsample = True
    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {
        "df": POSITIVE,
        "loc": constraints.real_vector,
        "scale": POSITIVE,
    }
    df: Tensor
    loc: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        """The location over the whole batch; not a number where df ≤ 1."""
        return self._over_cells(torch.where(self.df > 1, self.loc, math.nan))

    @property
    def variance(self) -> Tensor:
        """scale²·df/(df − 2) over the whole batch; infinite where df ≤ 2, and no number where df ≤ 1."""
        finite = self.scale**2 * self.df / (self.df - 2).clamp(min=torch.finfo(self.df.dtype).tiny)
        heavy = torch.where(self.df > 1, math.inf, math.nan)
        return self._over_cells(torch.where(self.df > 2, finite, heavy))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A normal draw over the square root of a gamma one."""
        noise = torch.randn(self._draw_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        half = self._wide(self.df / 2, sample_shape)
        precision = (torch._standard_gamma(half) / half).clamp(min=torch.finfo(self.df.dtype).tiny)
        return self.loc + self.scale * noise * precision.rsqrt()

    def log_cells(self, value: Tensor) -> Tensor:
        """Log t((x − loc)/scale; df) − log scale."""
        squared = ((value - self.loc) / self.scale) ** 2
        tail = (self.df + 1) / 2 * torch.log1p(squared / self.df)
        return log_constant(self.df) - self.scale.log() - tail


def expected_weight(df: Tensor, squared: Tensor, dimensions: Tensor | float = 1) -> tuple[Tensor, Tensor]:
    """E[u | x] and E[u − log u − 1 | x] at the squared distances: u is Gamma((df + D)/2, (df + squared)/2).

    The second as a whole: where df is large it is 1/df, of terms near 1 that single precision knows to 1e-7.
    """
    shape = (df + dimensions) / 2
    excess = (squared - dimensions) / (df + dimensions)  # 1/E[u] − 1
    return 1 / (1 + excess), torch.log1p(excess) - excess / (1 + excess) + log_minus_digamma(shape)


def at_jumps(df: Tensor, squared: Tensor, dimensions: Tensor | float = 1) -> list[Tensor]:
    """How much log p gains where df alone jumps, at the squared distances: one tensor for each of `JUMPS`."""

    def tail(df: Tensor) -> Tensor:
        return log_constant(df, dimensions) - (df + dimensions) / 2 * torch.log1p(squared / df)

    here = tail(df)
    return [tail(_jumped(df, factor)) - here for factor in JUMPS]


def _jumped(df: Tensor, factor: float) -> Tensor:
    return (df * factor).clamp(LEAST_DF, LARGEST_DF)


def best_jump(
    gains: Sequence[Tensor], n: Tensor, current: Tensor, site: Site, parameter: str = "df"
) -> tuple[Tensor, Tensor]:
    """Df after the better of the jumps, where one is worth it, and what is gained in all: a scalar."""
    if parameter in site.fixed:
        return current, n.sum() * 0
    least = max(WORTH_IT, ROUNDED * torch.finfo(n.dtype).eps) * pool(n, site, parameter)
    down, up = (pool(gain, site, parameter) for gain in gains)
    moved = torch.where(up > down, _jumped(current, JUMPS[1]), _jumped(current, JUMPS[0]))
    gain = torch.maximum(up, down)
    better = site.keep(parameter, gain > least, torch.zeros_like(gain, dtype=torch.bool))
    return torch.where(better, moved, current), torch.where(better, gain, 0.0).sum()


def precision_density(n: Tensor, gaps: Tensor, df: Tensor) -> Tensor:
    """Σ E log Gamma(u; df/2, df/2), less what does not depend on df: of the sums Σ1 and Σ(u − log u − 1)."""
    half = df / 2
    exact = half > _series_from(df)
    big = torch.where(exact, half, 1e3)
    far = 0.5 * big.log() - 0.5 * math.log(2 * math.pi) - stirling_rest(big)
    near = half * half.log() - half - torch.lgamma(half)
    return n * torch.where(exact, far, near) - half * gaps


def expansion(n: Tensor, weights: Tensor, df: Tensor, site: Site, scale: str) -> Tensor:
    """The working parameter of parameter-expanded EM over the joint table: by how much weights exceed 1 on average.

    1 where the scale cannot follow, because it is written.
    """
    if scale in site.fixed or scale in site.free:
        return torch.ones_like(n)
    top, bottom = pool(df * weights, site, scale), pool(df * n, site, scale)
    alpha = torch.where(bottom > 0, top / at_least_tiny(bottom), 1.0)
    return site.spread(at_least_tiny(alpha), scale)


def expanded(gaps: Tensor, n: Tensor, weights: Tensor, alpha: Tensor) -> Tensor:
    """Σ(u − log u − 1) with u/α for u, of Σ1 and Σu."""
    return gaps - weights * (alpha - 1) / alpha + n * torch.log1p(alpha - 1)


def degrees_of_freedom(n: Tensor, gaps: Tensor, current: Tensor, site: Site, parameter: str = "df") -> Tensor:
    """Maximum likelihood of df given Σ1 and Σ(u − log u − 1): log(df/2) − ψ(df/2) is their quotient."""
    if parameter in site.fixed:
        return current
    count = pool(n, site, parameter)
    new = (2 * shape_of_gap(pool(gaps, site, parameter) / at_least_tiny(count))).clamp(LEAST_DF, LARGEST_DF)
    return site.keep(parameter, torch.where(count > 0, new, current), current)


class StudentTFamily(Family):
    """StudentT(dim, df, loc, scale): F7.3 by expectation–maximisation within the M-step's statistics."""

    reparameterised = True
    adaptive = True
    variance_floor = Family.variance_floor * FINER_FLOOR

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> StudentTVector:
        """Independent cells."""
        return StudentTVector(widened(working["df"], sizes.width), working["loc"], working["scale"])

    def expected_statistics(
        self,
        weights: Tensor,
        value: Tensor,
        sizes: Sizes,
        *,
        seen: Tensor | None = None,
        current: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Σw, Σwu, Σwu·y, Σwu·y², Σw·(u − log u − 1), u as expected at the current parameters, and gains of jumps.

        Y is x from the current location: outliers make the columns' units large beside the scale.
        """
        assert current is not None
        df, loc, scale = (current[name].unsqueeze(-2) for name in ("df", "loc", "scale"))
        apart = value - loc  # (joint axes…, N, D)
        squared = (apart / scale) ** 2
        u, gap = expected_weight(df, squared)
        w = weights.unsqueeze(-1) if seen is None else weights.unsqueeze(-1) * seen
        wu = w * u
        jumps = [w * gain for gain in at_jumps(df, squared)]
        parts = (w.expand_as(wu), wu, wu * apart, wu * apart**2, w * gap, *jumps)
        return torch.cat([widened(part, sizes.width).sum(-2) for part in parts], -1)

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """A normal's estimates under the weights u, df by Newton's method; or a jump of df, if that gains more."""
        n, u, first, second, gaps, *jumps = statistics.split(site.sizes.width, -1)
        before = self._complete(n, u, first, second, gaps, current, site)
        origin = site.spread(current["loc"], "loc")
        floor = floor * FINER_FLOOR
        alpha = expansion(n, u, site.spread(current["df"], "df"), site, "scale")
        gaps = expanded(gaps, n, u, alpha)
        u, first, second = u / alpha, first / alpha, second / alpha
        loc, variance = current["loc"], current["scale"] ** 2
        regular = torch.ones_like(statistics.sum(), dtype=torch.bool)
        for _ in range(1 if "scale" in site.fixed or site.nested("scale", "loc") else ECM_CYCLES):
            if "loc" not in site.fixed:
                precision = 1 / site.spread(variance, "scale")
                bottom = pool(precision * u, site, "loc")
                top = pool(precision * (first + origin * u), site, "loc")
                new = top / at_least_tiny(bottom)
                loc = site.keep("loc", torch.where(bottom > 0, new, loc), loc)
            if "scale" not in site.fixed:
                middle = site.spread(loc, "loc") - origin
                squares = pool(second - 2 * middle * first + middle**2 * u, site, "scale")
                variance, regular = _variance(squares, n, variance, site, floor, jitter)
        df = degrees_of_freedom(n, gaps, current["df"], site)
        found = {"df": df, "loc": loc, "scale": variance.sqrt()}
        after = self._complete(n, u, first, second, gaps, found, site, origin) - 0.5 * (n * alpha.log()).sum()
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
        origin: Tensor | float | None = None,
    ) -> Tensor:
        """Q of the cells and their precisions together, less constants: a scalar."""
        scale = site.spread(at["scale"], "scale")
        middle = 0.0 if origin is None else site.spread(at["loc"], "loc") - origin
        squares = second - 2 * middle * first + middle**2 * u
        normal = -n * scale.log() - squares / (2 * scale**2)
        return (normal + precision_density(n, gaps, site.spread(at["df"], "df"))).sum()

    def rescale(self, working: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Loc and scale in units of `scale`, from `shift`; df has no unit."""
        unit = {name: scale[..., : working[name].shape[-1]] for name in ("loc", "scale")}
        loc = (working["loc"] - shift[..., : working["loc"].shape[-1]]) / unit["loc"]
        return {"df": working["df"], "loc": loc, "scale": working["scale"] / unit["scale"]}

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """Nearly normal, so that the first weights exclude no class."""
        return {"df": torch.full_like(centre, DF_BEGINNING), "loc": centre, "scale": spread}


def jump_or(
    found: dict[str, Tensor],
    regular: Tensor,
    gain: Tensor,
    jump: tuple[Tensor, Tensor],
    current: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], Tensor]:
    """What EM found, or df's jump alone where it gains more: neither lowers the likelihood, both at once could."""
    df, jumped = jump
    leap = jumped > gain
    kept = {key: torch.where(leap, df if key == "df" else current[key], new) for key, new in found.items()}
    return kept, regular | leap


def _variance(
    squares: Tensor, n: Tensor, variance: Tensor, site: Site, floor: Tensor, jitter: Tensor
) -> tuple[Tensor, Tensor]:
    count = pool(n, site, "scale")
    new = torch.where(count > 0, squares / at_least_tiny(count), variance) + narrow(jitter, variance)
    sound = new >= narrow(floor, new)
    new = site.keep("scale", torch.maximum(new, narrow(floor, new)), variance)
    return new, site.keep("scale", sound, torch.ones_like(sound)).all()
