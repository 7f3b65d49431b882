"""Counts, independent given the parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.program.families.base import (
    Family,
    LazyDistribution,
    Site,
    Sizes,
    as_rows,
    constants,
    is_outer,
    outer_log_prob,
    summed_over_cells,
)
from ppl_gen.program.families.bernoulli import linear_features, pooled_sums
from ppl_gen.program.families.conjugate import rate_mode


class PoissonVector(LazyDistribution):
    """Independent Poisson cells over the last axis, rates (*batch, D)."""

    support = constraints.independent(constraints.nonnegative_integer, 1)
    arg_constraints: ClassVar[dict[str, Any]] = {"rate": constraints.independent(constraints.positive, 1)}

    def __init__(self, rate: Tensor, validate_args: bool | None = None) -> None:
        self.rate = rate
        super().__init__(rate.shape[:-1], rate.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The rates over the whole batch."""
        return self.rate.expand(self._batch_shape + self._event_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Counts, as floating-point numbers."""
        with torch.no_grad():
            return torch.poisson(self.rate.expand(self._draw_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Σ_i x_i log λ_i − λ_i − log x_i!."""
        if self._validate_args:
            self._validate_sample(value)
        rows, own, log_rate = value.shape[:-1], self.rate.shape[:-1], self.rate.log()
        if len(own) > 1 and is_outer(own, rows):
            natural = torch.cat([constants(-self.rate, self.seen), log_rate], -1)
            kernel = outer_log_prob(natural, linear_features(as_rows(value), self.seen))
        else:
            kernel = summed_over_cells(value * log_rate - self.rate, self.seen)
        return self._over_batch(kernel - summed_over_cells(torch.lgamma(value + 1), self.seen), rows)


class PoissonFamily(Family):
    """Poisson(dim, rate)."""

    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {"rate": ("Gamma", "Exponential")}

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> PoissonVector:
        """Independent counts at these rates."""
        rate = working["rate"]
        return PoissonVector(rate.expand((*rate.shape[:-1], sizes.width)))

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, x."""
        return linear_features(value, seen)

    def maximise(
        self,
        statistics: Tensor,
        current: Mapping[str, Tensor],
        site: Site,
        floor: Tensor,
        jitter: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted mean."""
        regular = torch.ones_like(statistics.sum(), dtype=torch.bool)
        rate = current["rate"]
        if "rate" in site.fixed:
            return {"rate": rate}, regular
        smallest = torch.finfo(rate.dtype).tiny
        events, exposure = pooled_sums(statistics, site, "rate")
        return {"rate": rate_mode(site, "rate", events, exposure, rate).clamp(min=smallest)}, regular
