"""The normal with independent dimensions: diagonal, spherical and tied mixtures, encoders and decoders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import register_kl

from ppl_gen.program.families.base import (
    Family,
    LazyDistribution,
    Site,
    Sizes,
    about_middle,
    as_rows,
    at_least_tiny,
    constants,
    counted,
    is_outer,
    outer_log_prob,
    standard_units,
    summed_over_cells,
)
from ppl_gen.program.families.conjugate import variance_mode, with_normal

LOG_2PI = math.log(2 * math.pi)
ECM_CYCLES = 20  # conditional maximisations a step, where location and scale do not separate


class DiagonalNormal(LazyDistribution):
    """N(loc, diag scale²) over the last axis, parameters (*batch, D)."""

    has_rsample = True
    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(self, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.scale = loc, scale
        shape = torch.broadcast_shapes(loc.shape, scale.shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The location over the whole batch."""
        return self.loc.expand(self._batch_shape + self._event_shape)

    @property
    def variance(self) -> Tensor:
        """scale² over the whole batch."""
        return (self.scale**2).expand(self._batch_shape + self._event_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Loc + scale·ε."""
        noise = torch.randn(self._draw_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Σ_i log N(x_i; loc_i, scale_i²)."""
        if self._validate_args:
            self._validate_sample(value)
        rows = value.shape[:-1]
        own = torch.broadcast_shapes(self.loc.shape, self.scale.shape)[:-1]
        if len(own) > 1 and is_outer(own, rows):
            loc, centred = about_middle(self.loc, as_rows(value))
            unit = self._unit()
            features = normal_features(centred if unit is None else centred / unit, self.seen)
            log_prob = outer_log_prob(self._natural(loc, unit), features)
            if unit is not None:
                log_prob = log_prob - summed_over_cells(unit.log().expand(value.shape[-1]), self.seen)
        else:
            standard = (value - self.loc) / self.scale
            each = -0.5 * standard**2 - self.scale.log() - 0.5 * LOG_2PI
            log_prob = summed_over_cells(each, self.seen)
        return self._over_batch(log_prob, rows)

    def _unit(self) -> Tensor | None:
        """A size of each column's scales, (D,) or (1,), so that squares stay finite; None in EM's units."""
        if standard_units():
            return None
        return self.scale.detach().log().reshape(-1, self.scale.shape[-1]).mean(0).exp()

    def _natural(self, loc: Tensor, unit: Tensor | None) -> Tensor:
        loc, scale = torch.broadcast_tensors(loc, self.scale)
        if unit is not None:
            loc, scale = loc / unit, scale / unit
        precision = scale**-2
        constant = constants(-0.5 * loc**2 * precision - scale.log() - 0.5 * LOG_2PI, self.seen)
        return torch.cat([constant, loc * precision, -0.5 * precision], -1)


@register_kl(DiagonalNormal, DiagonalNormal)  # type: ignore[untyped-decorator]
def _kl(p: DiagonalNormal, q: DiagonalNormal) -> Tensor:
    ratio = (p.scale / q.scale) ** 2
    apart = ((p.loc - q.loc) / q.scale) ** 2
    kl = 0.5 * (ratio + apart - 1 - ratio.log()).sum(-1)
    return kl.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape, kl.shape))


def normal_features(value: Tensor, seen: Tensor | None = None) -> Tensor:
    """(N, D) → (1 + 2D, N): 1, x, x²; with marks of the seen cells (3D, N), 0 where nothing is seen."""
    columns = value.T if seen is None else (value * seen).T  # (D, N)
    return torch.cat([counted(columns, seen), columns, columns * columns])


class NormalFamily(Family):
    """Normal(dim, loc, scale): F9.5's densities, and F7.3's estimates in closed form."""

    reparameterised = True
    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "loc": ("Normal",),
        "scale": ("InverseGamma", "HalfNormal", "HalfCauchy"),
    }

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> DiagonalNormal:
        """N(loc, diag scale²), one value for all dimensions broadcast."""
        loc, scale = working["loc"], working["scale"]
        if loc.shape[-1] != sizes.width and scale.shape[-1] != sizes.width:
            loc = loc.expand((*loc.shape[:-1], sizes.width))
        return DiagonalNormal(loc, scale)

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, x, x²."""
        return normal_features(value, seen)

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted mean, then weighted mean square about it; in turns where the two do not separate.

        Under a prior a location is drawn the more to the prior's, the larger the scale: then they do not.
        """
        D = site.sizes.width
        n, first, second = statistics.split([statistics.shape[-1] - 2 * D, D, D], -1)
        loc, scale = current["loc"], current["scale"]
        variance = scale**2
        separate = site.nested("scale", "loc") and "loc" not in site.priors
        cycles = 1 if "scale" in site.fixed or separate else ECM_CYCLES
        for _ in range(cycles):
            if "loc" not in site.fixed:
                precision = 1 / site.spread(variance, "scale")
                top = self._pool(precision * first, site, "loc")
                bottom = self._pool(precision * n.expand_as(first), site, "loc")
                top, bottom = with_normal(site, "loc", top, bottom)
                new = torch.where(bottom > 0, top / at_least_tiny(bottom), loc)
                loc = site.keep("loc", new, loc)
            if "scale" not in site.fixed:
                middle = site.spread(loc, "loc")
                squares = self._pool(second - 2 * middle * first + middle**2 * n, site, "scale")
                count = self._pool(n.expand_as(first), site, "scale")
                variance = variance_mode(site, "scale", squares, count, variance)
                variance = variance + self._narrow(jitter, variance)
                sound = variance >= self._narrow(floor, variance)
                regular = site.keep("scale", sound, torch.ones_like(sound)).all()
                variance = torch.maximum(variance, self._narrow(floor, variance))
                variance = site.keep("scale", variance, scale**2)
        if "scale" in site.fixed:
            return {"loc": loc, "scale": scale}, torch.ones_like(statistics.sum(), dtype=torch.bool)
        return {"loc": loc, "scale": variance.sqrt()}, regular

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """The columns' own."""
        return {"loc": centre, "scale": spread}

    def _pool(self, joint: Tensor, site: Site, parameter: str) -> Tensor:
        table = site.gather(joint, parameter)
        return table.sum(-1, keepdim=True) if parameter in site.shared else table

    def _narrow(self, per_column: Tensor, like: Tensor) -> Tensor:
        return per_column.amax(-1, keepdim=True) if like.shape[-1] == 1 else per_column

    def rescale(self, working: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Loc and scale in units of `scale`, from `shift`."""
        shift, unit = (_like(per_column, working["loc"]) for per_column in (shift, scale))
        return {
            "loc": (working["loc"] - shift) / unit,
            "scale": working["scale"] / _like(scale, working["scale"]),
        }


def _like(per_column: Tensor, table: Tensor) -> Tensor:
    return per_column[..., :1] if table.shape[-1] == 1 else per_column
