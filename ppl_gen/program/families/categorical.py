"""One category, or several items at once; observed or latent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn import functional as F

from ppl_gen.program.constraints import floored_log
from ppl_gen.program.families.base import (
    Family,
    LazyDistribution,
    Site,
    Sizes,
    as_rows,
    at_least_tiny,
    is_outer,
    outer_log_prob,
)
from ppl_gen.program.families.bernoulli import binary_table, enumerated
from ppl_gen.program.families.conjugate import with_dirichlet


class CategoricalVector(LazyDistribution):
    """Independent categories over the last axis, logits (*batch, D, k); a scalar has logits (*batch, k)."""

    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, logits: Tensor, scalar: bool, validate_args: bool | None = None) -> None:
        self.logits, self.scalar = F.log_softmax(logits, -1), scalar
        event = torch.Size() if scalar else logits.shape[-2:-1]
        batch = logits.shape[:-1] if scalar else logits.shape[:-2]
        super().__init__(batch, event, validate_args=validate_args)

    @constraints.dependent_property  # type: ignore[untyped-decorator]
    def support(self) -> Any:
        """Integers 0..k−1, and −1 for a cell that is not seen."""
        levels = constraints.integer_interval(-1, self.logits.shape[-1] - 1)
        return levels if self.scalar else constraints.independent(levels, 1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Levels, as integers."""
        with torch.no_grad():
            shape = self._draw_shape(sample_shape)
            probs = self.logits.exp().expand(shape + self.logits.shape[-1:])
            return torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1).reshape(shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels (k, *batch), or all k^D vectors (k^D, *batch, D)."""
        width = 1 if self.scalar else self._event_shape[0]
        table = binary_table(width, self.logits.shape[-1], self.logits)
        return enumerated(table[:, 0] if self.scalar else table, self._batch_shape, expand, not self.scalar)

    def log_prob(self, value: Tensor) -> Tensor:
        """Σ_i log p_{i, x_i}; a cell that is not seen (−1) adds nothing."""
        if self._validate_args:
            self._validate_sample(value)
        cells = value.unsqueeze(-1) if self.scalar else value  # (*rows, D)
        logits = self.logits.unsqueeze(-2) if self.scalar else self.logits  # (*batch, D, k)
        rows, own = cells.shape[:-1], logits.shape[:-2]
        if len(own) > 1 and is_outer(own, rows):
            features = one_hot_features(as_rows(cells), logits.shape[-1], logits.dtype)
            log_prob = outer_log_prob(logits.flatten(-2), features)
        else:
            batch = torch.broadcast_shapes(rows, own)
            wide = logits.expand(batch + logits.shape[-2:])
            index = cells.expand(batch + cells.shape[-1:]).unsqueeze(-1)
            each = wide.gather(-1, index.clamp(min=0)).squeeze(-1)
            log_prob = torch.where(cells >= 0, each, torch.zeros_like(each)).sum(-1)
        return self._over_batch(log_prob, rows)


def one_hot_features(value: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    """(N, D) levels → (D·k, N) indicators, level fastest."""
    levels = torch.arange(k, device=value.device)
    return (value.T.unsqueeze(1) == levels.unsqueeze(-1)).flatten(0, 1).to(dtype)


class CategoricalFamily(Family):
    """Categorical(k, dim, probs) or (…, logits): classes, items, mixing weights."""

    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {"probs": ("Dirichlet",)}

    def axes(self, parameter: str, sizes: Sizes) -> tuple[int, ...]:
        """(D, k), or (k,) for a scalar."""
        assert sizes.k is not None
        return (sizes.k,) if sizes.scalar else (sizes.width, sizes.k)

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> CategoricalVector:
        """Independent items with these logits."""
        (logits,) = working.values()
        if not sizes.scalar:
            logits = logits.expand((*logits.shape[:-2], sizes.width, logits.shape[-1]))
        return CategoricalVector(logits, sizes.scalar)

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """Indicators of every level of every item; none of a cell that is not seen."""
        assert sizes.k is not None
        cells = value.unsqueeze(-1) if sizes.scalar else value
        return one_hot_features(cells, sizes.k, dtype)

    def maximise(
        self,
        statistics: Tensor,
        current: Mapping[str, Tensor],
        site: Site,
        floor: Tensor,
        jitter: Tensor,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The weighted share of each level: π_k = (1/N) Σ_n r_nk for the mixing weights."""
        ((name, logits),) = current.items()
        regular = torch.ones_like(statistics.sum(), dtype=torch.bool)
        if name in site.fixed:
            return {name: logits}, regular
        counts = site.gather(statistics.unflatten(-1, (site.sizes.width, -1)), name)
        if name in site.shared:
            counts = counts.sum(-2, keepdim=True)
        if site.sizes.scalar:
            counts = counts.squeeze(-2)
        counts = with_dirichlet(site, name, counts)
        total = counts.sum(-1, keepdim=True)
        return {name: torch.where(total > 0, floored_log(counts / at_least_tiny(total)), logits)}, regular

    def closed_form(self, partly_fixed: frozenset[str], shared: frozenset[str]) -> str | None:
        """A table of probabilities with some fixed entries is not separable."""
        del shared
        return (
            f"{', '.join(sorted(partly_fixed))} of a Categorical is fixed in part" if partly_fixed else None
        )

    def support(self, sizes: Sizes) -> Tensor:
        """All levels (k,), or all k^D vectors (k^D, D)."""
        assert sizes.k is not None
        table = binary_table(sizes.width, sizes.k, torch.empty(0))
        return table[:, 0] if sizes.scalar else table
