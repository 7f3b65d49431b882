"""Gamma over positive cells, independent given the parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.program.families.base import Family, Site, Sizes, at_least_tiny
from ppl_gen.program.families.cells import CellVector, narrow, parted, pool, stacked, where_seen, widened
from ppl_gen.program.families.normal import ECM_CYCLES
from ppl_gen.program.families.shapes import inverse_digamma, shape_of_gap

POSITIVE = constraints.independent(constraints.positive, 1)


class GammaVector(CellVector):
    """Independent gamma cells, concentration a and rate b (*batch, D)."""

    names = ("concentration", "rate")
    inside = 1.0
    has_rsample = True
    support = POSITIVE
    arg_constraints: ClassVar[dict[str, Any]] = {"concentration": POSITIVE, "rate": POSITIVE}
    concentration: Tensor
    rate: Tensor

    @property
    def mean(self) -> Tensor:
        """a/b over the whole batch."""
        return self._over_cells(self.concentration / self.rate)

    @property
    def variance(self) -> Tensor:
        """a/b² over the whole batch."""
        return self._over_cells(self.concentration / self.rate**2)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """A standard gamma over the rate."""
        standard = torch._standard_gamma(self._wide(self.concentration, sample_shape))
        return (standard / self.rate).clamp(min=torch.finfo(self.rate.dtype).tiny)

    def _constant(self) -> Tensor:
        return self.concentration * self.rate.log() - torch.lgamma(self.concentration)

    def log_cells(self, value: Tensor) -> Tensor:
        """A log b − log Γ(a) + (a − 1) log x − b x."""
        return self._constant() + (self.concentration - 1) * value.log() - self.rate * value

    def natural_form(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """−b and a, of x and log x."""
        constant, rate, concentration = torch.broadcast_tensors(
            self._constant(), self.rate, self.concentration
        )
        return constant, (-rate, concentration)

    def features(self, value: Tensor) -> tuple[Tensor, ...]:
        """X, log x."""
        return value, value.log()

    def base_measure(self, value: Tensor) -> Tensor:
        """−log x."""
        return -value.log()


class GammaFamily(Family):
    """Gamma(dim, concentration, rate): Newton's method for the shape, the rate in closed form (F7.3)."""

    reparameterised = True

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> GammaVector:
        """Independent cells."""
        return GammaVector(widened(working["concentration"], sizes.width), working["rate"])

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, x, log x."""
        value = where_seen(value, seen, GammaVector.inside)
        return stacked((value, value.log()), seen)

    def closed_form(self, partly_fixed: frozenset[str], shared: frozenset[str]) -> str | None:
        """With some entries fixed, shape and rate do not separate."""
        return f"{', '.join(sorted(partly_fixed))} of a Gamma is fixed in part" if partly_fixed else None

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Log a − ψ(a) = log mean − mean log x, then b = a/mean; in turns where the two do not separate.

        A class whose values spread by less than the floor, relative to their mean, is not regular.
        """
        n, first, logs = parted(statistics, 2, site.sizes.width)
        n = n.expand_as(first)
        shape, rate = current["concentration"], current["rate"]
        regular = torch.ones_like(statistics.sum(), dtype=torch.bool)
        separate = _finer(site, "rate", "concentration")
        turns = 1 if separate or {"rate", "concentration"} & site.fixed else ECM_CYCLES
        for _ in range(turns):
            if "concentration" not in site.fixed:
                count = pool(n, site, "concentration")
                if separate and "rate" not in site.fixed:
                    mean = pool(first, site, "rate") / at_least_tiny(pool(n, site, "rate"))
                    log_mean = site.spread(at_least_tiny(mean).log(), "rate")
                    gap = pool(n * log_mean - logs, site, "concentration") / at_least_tiny(count)
                    least = narrow(floor, gap) / 2
                    regular = ((gap >= least) | (count <= 0)).all()
                    new = shape_of_gap(torch.maximum(gap, least))
                else:
                    log_rate = site.spread(rate.log(), "rate")
                    level = pool(n * log_rate + logs, site, "concentration") / at_least_tiny(count)
                    new = inverse_digamma(level)
                shape = torch.where(count > 0, new, shape)
            if "rate" not in site.fixed:
                total = pool(first, site, "rate")
                wanted = pool(n * site.spread(shape, "concentration"), site, "rate")
                rate = torch.where(total > 0, at_least_tiny(wanted) / at_least_tiny(total), rate)
        return {"concentration": shape, "rate": rate}, regular

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """By moments: mean² and mean over the variance."""
        centre = at_least_tiny(centre)
        return {"concentration": (centre / spread) ** 2, "rate": centre / spread**2}


def _finer(site: Site, fine: str, coarse: str) -> bool:
    """Whether `coarse` is one value wherever `fine` is: over classes, and over dimensions."""
    return site.nested(coarse, fine) and (fine not in site.shared or coarse in site.shared)
