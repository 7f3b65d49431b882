"""Successes among a given number of trials, independent given the parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional as F

from ppl_gen.program.constraints import logit
from ppl_gen.program.families.base import Family, Site, Sizes, at_least_tiny
from ppl_gen.program.families.bernoulli import linear_features
from ppl_gen.program.families.cells import CellVector, always_regular, parted, pool, widened


class BinomialVector(CellVector):
    """Independent binomial cells: totals n (D,), or (N, D) for every row its own, and logits l (*batch, D)."""

    names = ("total_count", "logits")
    arg_constraints: ClassVar[dict[str, Any]] = {
        "total_count": constraints.independent(constraints.nonnegative, 1),
        "logits": constraints.real_vector,
    }
    total_count: Tensor
    logits: Tensor

    @constraints.dependent_property  # type: ignore[untyped-decorator]
    def support(self) -> Any:
        """Whole numbers from 0 to the total."""
        return constraints.independent(constraints.integer_interval(0, self.total_count), 1)

    @property
    def mean(self) -> Tensor:
        """n·p over the whole batch."""
        return self._over_cells(self.total_count * torch.sigmoid(self.logits))

    @property
    def variance(self) -> Tensor:
        """n·p·(1 − p) over the whole batch."""
        spread = torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)
        return self._over_cells(self.total_count * spread)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Counts, as floating-point numbers."""
        with torch.no_grad():
            total = self._wide(self.total_count, sample_shape)
            return torch.binomial(total, torch.sigmoid(self._wide(self.logits, sample_shape)))

    def log_cells(self, value: Tensor) -> Tensor:
        """Log C(n, x) + x l − n log(1 + e^l)."""
        kernel = value * self.logits - self.total_count * F.softplus(self.logits, threshold=40)
        return kernel + self.base_measure(value)

    def natural_form(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The logits, of x."""
        return -self.total_count * F.softplus(self.logits, threshold=40), (self.logits,)

    def features(self, value: Tensor) -> tuple[Tensor, ...]:
        """X itself."""
        return (value,)

    def base_measure(self, value: Tensor) -> Tensor:
        """Log C(n, x)."""
        total = self.total_count
        return torch.lgamma(total + 1) - torch.lgamma(value + 1) - torch.lgamma(total - value + 1)


class BinomialFamily(Family):
    """Binomial(dim, total_count, probs) or (…, logits); the totals are given, not learned."""

    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {"probs": ("Beta",)}

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> BinomialVector:
        """Independent cells with these logits."""
        logits = working["probs" if "probs" in working else "logits"]
        return BinomialVector(working["total_count"], widened(logits, sizes.width))

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, x."""
        return linear_features(value, seen)

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted share of successes among all trials; under a beta prior the mode."""
        name = "probs" if "probs" in current else "logits"
        total, logits = current["total_count"], current[name]
        if name not in site.fixed:
            n, first = parted(statistics, 1, site.sizes.width)
            trials = pool(n * site.spread(total, "total_count"), site, name)
            successes = pool(first, site, name)
            if name in site.priors:
                prior = site.priors[name].arguments
                successes = (successes + prior["concentration1"] - 1).clamp(min=0)
                trials = trials + prior["concentration1"] + prior["concentration0"] - 2
            share = (successes / at_least_tiny(trials)).clamp(max=1)
            logits = torch.where(trials > 0, logit(share), logits)
        return {"total_count": total, name: logits}, always_regular(statistics)

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """One half: the totals are not among the moments."""
        return {"probs": torch.zeros_like(centre), "logits": torch.zeros_like(centre)}
