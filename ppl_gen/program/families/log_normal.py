"""Positive cells whose logarithms are normal, independent given the parents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.program.families.base import Sizes, at_least_tiny
from ppl_gen.program.families.cells import CellVector, where_seen, widened
from ppl_gen.program.families.gamma import POSITIVE
from ppl_gen.program.families.normal import NormalFamily, normal_features

LOG_2PI = math.log(2 * math.pi)


class LogNormalVector(CellVector):
    """Independent cells, the logarithm's loc and scale (*batch, D)."""

    names = ("loc", "scale")
    inside = 1.0
    has_rsample = True
    support = POSITIVE
    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real_vector, "scale": POSITIVE}
    loc: Tensor
    scale: Tensor

    @property
    def mean(self) -> Tensor:
        """e^(loc + scale²/2) over the whole batch."""
        return self._over_cells((self.loc + self.scale**2 / 2).exp())

    @property
    def variance(self) -> Tensor:
        """(e^(scale²) − 1)·mean² over the whole batch."""
        return torch.expm1(self.scale**2) * self.mean**2

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """e^(loc + scale·ε)."""
        noise = torch.randn(self._draw_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return (self.loc + self.scale * noise).exp()

    def log_cells(self, value: Tensor) -> Tensor:
        """Log N(log x; loc, scale²) − log x."""
        logs = value.log()
        return -0.5 * ((logs - self.loc) / self.scale) ** 2 - self.scale.log() - 0.5 * LOG_2PI - logs


class LogNormalFamily(NormalFamily):
    """LogNormal(dim, loc, scale): a normal's estimates, from logarithms (F7.3)."""

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> LogNormalVector:
        """Independent cells."""
        return LogNormalVector(widened(working["loc"], sizes.width), working["scale"])

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, log x, (log x)²."""
        return normal_features(where_seen(value, seen, LogNormalVector.inside).log(), seen)

    def rescale(self, working: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Positive columns stay in their own units."""
        return dict(working)

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """By moments of the values themselves."""
        centre = at_least_tiny(centre)
        variance = torch.log1p((spread / centre) ** 2)
        return {"loc": centre.log() - variance / 2, "scale": variance.sqrt()}
