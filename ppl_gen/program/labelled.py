"""A guide's distribution of a discrete latent that some rows have a label of."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_gen.program.families.base import LazyDistribution
from ppl_gen.program.marks import agreement


class Labelled(LazyDistribution):
    """q(z | x) where nothing is known of z, and certainty of the label where it is (rule 19).

    Args:
        own: the distribution of the rows without a label.
        label: (N,), or (N, D); anything where `seen` is 0.
        seen: 1 for a row whose label is known, of the label's shape.

    """

    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, own: Any, label: Tensor, seen: Tensor) -> None:
        self.own, self.label, self.marks = own, label, seen
        super().__init__(own.batch_shape, own.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """That of the rows without a label."""
        return self.own.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Labelled:
        """The same parameters under a wider batch shape."""
        return Labelled(self.own.expand(batch_shape), self.label, self.marks)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values, labelled rows too: those but the label are next to impossible there."""
        values: Tensor = self.own.enumerate_support(expand)
        return values

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """The label where it is known."""
        drawn = self.own.sample(sample_shape)
        return torch.where(self.marks > 0, self.label.to(drawn), drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log q, and 0 or next to log 0 where the label is known."""
        log_q: Tensor = self.own.log_prob(value)
        known = (self.marks > 0).any(-1) if self.own.event_shape else self.marks > 0
        return torch.where(known, agreement(value, self.label, self.marks, log_q.dtype), log_q)
