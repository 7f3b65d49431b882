"""Exponential over positive cells, independent given the parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_gen.program.families.base import Family, Site, Sizes, at_least_tiny
from ppl_gen.program.families.bernoulli import linear_features
from ppl_gen.program.families.cells import CellVector, always_regular, parted, pool, widened
from ppl_gen.program.families.gamma import POSITIVE


class ExponentialVector(CellVector):
    """Independent exponential cells, rates (*batch, D)."""

    names = ("rate",)
    inside = 1.0
    has_rsample = True
    support = POSITIVE
    arg_constraints: ClassVar[dict[str, Any]] = {"rate": POSITIVE}
    rate: Tensor

    @property
    def mean(self) -> Tensor:
        """1/rate over the whole batch."""
        return self._over_cells(1 / self.rate)

    @property
    def variance(self) -> Tensor:
        """1/rate² over the whole batch."""
        return self._over_cells(self.rate**-2)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A standard exponential over the rate."""
        uniform = torch.rand(self._draw_shape(sample_shape), dtype=self.rate.dtype, device=self.rate.device)
        return (-torch.log1p(-uniform) / self.rate).clamp(min=torch.finfo(self.rate.dtype).tiny)

    def log_cells(self, value: Tensor) -> Tensor:
        """Log λ − λ x."""
        return self.rate.log() - self.rate * value

    def natural_form(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """−λ, of x."""
        return self.rate.log(), (-self.rate,)

    def features(self, value: Tensor) -> tuple[Tensor, ...]:
        """X itself."""
        return (value,)


class ExponentialFamily(Family):
    """Exponential(dim, rate): one over the weighted mean (F7.3)."""

    reparameterised = True
    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {"rate": ("Gamma",)}

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> ExponentialVector:
        """Independent cells."""
        return ExponentialVector(widened(working["rate"], sizes.width))

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, x."""
        return linear_features(value, seen)

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One over the weighted mean; under a gamma prior the mode, (Σw + a − 1)/(Σwx + b)."""
        rate = current["rate"]
        if "rate" not in site.fixed:
            n, first = parted(statistics, 1, site.sizes.width)
            top, bottom = pool(n.expand_as(first), site, "rate"), pool(first, site, "rate")
            if "rate" in site.priors:
                prior = site.priors["rate"].arguments
                top, bottom = (top + prior["concentration"] - 1).clamp(min=0), bottom + prior["rate"]
            rate = torch.where(bottom > 0, at_least_tiny(top) / at_least_tiny(bottom), rate)
        return {"rate": rate}, always_regular(statistics)

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """One over the mean."""
        return {"rate": 1 / at_least_tiny(centre)}
