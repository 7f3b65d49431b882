"""A normalising flow: a normal's draws carried through transforms, and their density by the change of variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.program.families.base import Family, LazyDistribution, Sizes
from ppl_gen.program.families.normal import DiagonalNormal, NormalFamily

MEAN_DRAWS = 1024  # of a mean, which has no closed form
AT_ONCE = 32


class FlowDistribution(LazyDistribution):
    """T_M(… T_1(x)), x from a diagonal normal; `batch` is what the transforms themselves depend on, (*batch).

    A draw's density takes the way back from the transforms' own memory of it; another value's is computed.
    """

    has_rsample = True
    support = constraints.real_vector
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: DiagonalNormal,
        transforms: Sequence[Any],
        batch: torch.Size,
        validate_args: bool | None = None,
    ) -> None:
        self.base, self.transforms = base, tuple(transforms)
        shape = torch.broadcast_shapes(base.batch_shape, batch)
        super().__init__(shape, base.event_shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The mean of 1024 draws: there is no closed form."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """The variance of 1024 draws: there is no closed form."""
        return self._moments()[1]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """T(loc + scale·ε)."""
        value = self.base.expand(self._batch_shape).rsample(sample_shape)
        for transform in self.transforms:
            value = transform(value)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log N(T⁻¹(z); loc, scale) − Σ log |det ∂T_m|."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(value.shape[:-1], self._batch_shape)
        if value.shape[:-1] != batch:
            value = value.expand(*batch, value.shape[-1])
        log_det: Tensor | float = 0.0
        for transform in reversed(self.transforms):
            before = transform.inv(value)
            log_det = log_det + transform.log_abs_det_jacobian(before, value)
            value = before
        return self.base.log_prob(value) - log_det

    def _moments(self) -> tuple[Tensor, Tensor]:
        total, squares = torch.zeros(()), torch.zeros(())
        for _ in range(MEAN_DRAWS // AT_ONCE):
            drawn = self.sample((AT_ONCE,))
            total, squares = total + drawn.sum(0), squares + drawn.square().sum(0)
        mean = total / MEAN_DRAWS
        return mean, (squares / MEAN_DRAWS - mean**2).clamp(min=0)


class FlowFamily(Family):
    """Flow(dim, loc, scale, context): this is the normal it starts from; `program.flows` has the transforms."""

    reparameterised = True

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> DiagonalNormal:
        """N(loc, diag scale²)."""
        return NormalFamily().distribution(working, sizes)
