"""Overdispersed counts, independent given the parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional as F

from ppl_gen.program.families.base import Family, Sizes, at_least_tiny
from ppl_gen.program.families.cells import CellVector, widened
from ppl_gen.program.families.gamma import POSITIVE
from ppl_gen.program.families.shapes import log_gamma_ratio

LARGEST_BEGINNING = 100.0  # total_count of a column with no more spread than Poisson's


class NegativeBinomialVector(CellVector):
    """Independent cells: total_count r and logits l (*batch, D), the mean is r·e^l."""

    names = ("total_count", "logits")
    support = constraints.independent(constraints.nonnegative_integer, 1)
    arg_constraints: ClassVar[dict[str, Any]] = {"total_count": POSITIVE, "logits": constraints.real_vector}
    total_count: Tensor
    logits: Tensor

    @property
    def mean(self) -> Tensor:
        """r·e^l over the whole batch."""
        return self._over_cells(self.total_count * self.logits.exp())

    @property
    def variance(self) -> Tensor:
        """Mean·(1 + e^l) over the whole batch."""
        return self.mean * (1 + self.logits.exp())

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Poisson counts whose rates are gamma, as floating-point numbers."""
        with torch.no_grad():
            rate = torch._standard_gamma(self._wide(self.total_count, sample_shape)) * self.logits.exp()
            return torch.poisson(rate)

    def log_cells(self, value: Tensor) -> Tensor:
        """Log Γ(r + x) − log Γ(r) − log x! − r log(1 + e^l) + x log σ(l)."""
        kernel = value * F.logsigmoid(self.logits) - self.total_count * F.softplus(self.logits, threshold=40)
        return kernel + log_gamma_ratio(self.total_count, value) - torch.lgamma(value + 1)


class NegativeBinomialFamily(Family):
    """NegativeBinomial(dim, total_count, probs) or (…, logits); no closed form in total_count: Newton's M-step."""

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> NegativeBinomialVector:
        """Independent cells; the working value of a probability is its logit."""
        logits = working["probs" if "probs" in working else "logits"]
        return NegativeBinomialVector(widened(working["total_count"], sizes.width), logits)

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """By moments: mean² over the spread beyond Poisson's."""
        centre = centre.clamp(min=1e-3)
        beyond = spread**2 - centre
        total = torch.where(beyond > 0, centre**2 / at_least_tiny(beyond), LARGEST_BEGINNING)
        total = total.clamp(0.01, LARGEST_BEGINNING)
        logits = (centre / total).log()
        return {"total_count": total, "probs": logits, "logits": logits}
