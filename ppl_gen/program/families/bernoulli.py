"""Yes-or-no cells, independent given the parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional as F

from ppl_gen.program.constraints import logit
from ppl_gen.program.families.base import (
    Family,
    LazyDistribution,
    Site,
    Sizes,
    as_rows,
    at_least_tiny,
    constants,
    counted,
    is_outer,
    outer_log_prob,
    summed_over_cells,
)
from ppl_gen.program.families.conjugate import share_mode


class BernoulliVector(LazyDistribution):
    """Independent Bernoulli cells over the last axis, logits (*batch, D)."""

    support = constraints.independent(constraints.boolean, 1)
    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """P(x = 1) over the whole batch."""
        return torch.sigmoid(self.logits).expand(self._batch_shape + self._event_shape)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Zeros and ones."""
        with torch.no_grad():
            probs = torch.sigmoid(self.logits).expand(self._draw_shape(sample_shape))
            return torch.bernoulli(probs)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All 2^D values, (2^D, *batch, D)."""
        table = binary_table(self._event_shape[-1], 2, self.logits).to(self.logits.dtype)
        return enumerated(table, self._batch_shape, expand, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Σ_i x_i l_i − log(1 + e^{l_i}) (F9.6)."""
        if self._validate_args:
            self._validate_sample(value)
        rows, own = value.shape[:-1], self.logits.shape[:-1]
        if len(own) > 1 and is_outer(own, rows):
            natural = torch.cat(
                [constants(-F.softplus(self.logits, threshold=40), self.seen), self.logits], -1
            )
            log_prob = outer_log_prob(natural, linear_features(as_rows(value), self.seen))
        else:
            log_prob = summed_over_cells(
                value * self.logits - F.softplus(self.logits, threshold=40), self.seen
            )
        return self._over_batch(log_prob, rows)


def binary_table(width: int, k: int, like: Tensor) -> Tensor:
    """Every vector of `width` levels out of k, the last cell turning fastest: (k^width, width)."""
    grid = torch.arange(k**width, device=like.device)
    if width == 1:
        return grid.unsqueeze(-1)
    digits = [(grid // k ** (width - 1 - cell)) % k for cell in range(width)]
    return torch.stack(digits, -1)


def enumerated(table: Tensor, batch: torch.Size, expand: bool, event_dim: int) -> Tensor:
    """A support (M, *event) with the batch's axes between, of size 1 or expanded."""
    event = table.shape[1:] if event_dim else torch.Size()
    shaped = table.reshape((table.shape[0], *(1,) * len(batch), *event))
    return shaped.expand((table.shape[0], *batch, *event)) if expand else shaped


def linear_features(value: Tensor, seen: Tensor | None = None) -> Tensor:
    """(N, D) → (1 + D, N): 1, x; with marks of the seen cells (2D, N), 0 where nothing is seen."""
    columns = value.T if seen is None else (value * seen).T
    return torch.cat([counted(columns, seen), columns])


def weighted_mean(statistics: Tensor, current: Tensor, site: Site, parameter: str) -> Tensor:
    """Σ w x / Σ w of the features (1, x), over a parameter's own table; `current` where a class is empty."""
    top, bottom = pooled_sums(statistics, site, parameter)
    return torch.where(bottom > 0, top / at_least_tiny(bottom), current)


def pooled_sums(statistics: Tensor, site: Site, parameter: str) -> tuple[Tensor, Tensor]:
    """Σ w x and Σ w of the features (1, x), over a parameter's own table."""
    D = site.sizes.width
    n, first = statistics.split([statistics.shape[-1] - D, D], -1)
    top, bottom = site.gather(first, parameter), site.gather(n.expand_as(first), parameter)
    if parameter in site.shared:
        top, bottom = top.sum(-1, keepdim=True), bottom.sum(-1, keepdim=True)
    return top, bottom


class BernoulliFamily(Family):
    """Bernoulli(dim, probs) or (…, logits)."""

    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {"probs": ("Beta",)}

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> BernoulliVector:
        """Independent cells with these logits."""
        (logits,) = working.values()
        return BernoulliVector(logits.expand((*logits.shape[:-1], sizes.width)))

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, x."""
        return linear_features(value.to(dtype), seen)

    def maximise(
        self,
        statistics: Tensor,
        current: Mapping[str, Tensor],
        site: Site,
        floor: Tensor,
        jitter: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted share of ones."""
        ((name, logits),) = current.items()
        regular = torch.ones_like(statistics.sum(), dtype=torch.bool)
        if name in site.fixed:
            return {name: logits}, regular
        ones, count = pooled_sums(statistics, site, name)
        return {name: logit(share_mode(site, name, ones, count, torch.sigmoid(logits)))}, regular

    def support(self, sizes: Sizes) -> Tensor:
        """All 2^D vectors."""
        return binary_table(sizes.width, 2, torch.empty(0))
