"""What a family gives the program: a Pyro distribution, sufficient statistics, weighted maximum likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """The settled sizes of one node: `width` cells, `k` levels where it is categorical, `scalar` without dim."""

    width: int
    k: int | None = None
    scalar: bool = False

    @property
    def levels(self) -> tuple[int, ...]:
        """The axes that a table indexed by this discrete node has: one for each of its cells."""
        return (self.k or 2,) * self.width


class LazyDistribution(TorchDistribution):
    """A distribution that leaves its parameters unexpanded.

    Pyro expands a site to its plate's size. Here that only notes the new batch shape, so that a density of N
    rows under K enumerated classes is one matrix product and no tensor of N×K×D is ever made.
    """

    has_rsample = False
    arg_constraints: ClassVar[dict[str, Any]] = {}
    seen: Any = None

    def where_seen(self, seen: Any) -> Self:
        """The distribution of the cells marked 1 in `seen` (N, D) alone, the others integrated out.

        A family whose cells depend on one another gets them as `missing_normal.Seen`.
        """
        if seen is None:
            return self
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.seen = seen
        return new

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same parameters under a wider batch shape."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._batch_shape = torch.Size(batch_shape)
        return new

    def _over_batch(self, log_prob: Tensor, value_batch: torch.Size) -> Tensor:
        return log_prob.expand(torch.broadcast_shapes(self._batch_shape, value_batch, log_prob.shape))

    def _draw_shape(self, sample_shape: Any) -> torch.Size:
        return torch.Size(sample_shape) + self._batch_shape + self._event_shape

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


def is_outer(parameters: torch.Size, rows: torch.Size) -> bool:
    """Whether every row meets every entry of the parameters' batch: parameters (…E, 1), rows (N,)."""
    one_plate = len(parameters) == 0 or parameters[-1] == 1
    return one_plate and len(rows) >= 1 and all(size == 1 for size in rows[:-1])


def outer_log_prob(natural: Tensor, features: Tensor) -> Tensor:
    """(…E, 1, P) natural parameters and (P, N) features → (…E, N): one matrix product."""
    flat = natural.reshape(-1, natural.shape[-1]) @ features  # (E, N)
    return flat.reshape((*natural.shape[:-2], features.shape[-1]))


def counted(columns: Tensor, seen: Tensor | None) -> Tensor:
    """The features that count rows: one row of ones, or the marks of the cells that are seen, (1 or D, N)."""
    return torch.ones_like(columns[:1]) if seen is None else seen.T


def constants(each: Tensor, seen: Tensor | None) -> Tensor:
    """The natural parameters that belong to `counted`: a sum over dimensions, or one number for each."""
    return each.sum(-1, keepdim=True) if seen is None else each


def summed_over_cells(each: Tensor, seen: Tensor | None) -> Tensor:
    """Σ over the last axis, of the seen cells alone where there are marks."""
    return each.sum(-1) if seen is None else (each * seen).sum(-1)


def as_rows(value: Tensor) -> Tensor:
    """Values (1…, N, D) as (N, D); left untouched where they are, so that features are recognised as the same."""
    return value if value.ndim == 2 else value.reshape(-1, value.shape[-1])


_IN_STANDARD_UNITS: ContextVar[bool] = ContextVar("in_standard_units", default=False)


@contextmanager
def in_standard_units() -> Iterator[None]:
    """Within it rows lie near 0 in units of their spread, as EM's do, and need no shift of their own."""
    token = _IN_STANDARD_UNITS.set(True)
    try:
        yield
    finally:
        _IN_STANDARD_UNITS.reset(token)


def standard_units() -> bool:
    """Whether rows are in standard units here, so that the natural form keeps its digits."""
    return _IN_STANDARD_UNITS.get()


def about_middle(loc: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Locations (…E, D) and rows (N, D), both from the middle of the locations.

    Far from 0 the natural form is a small difference of large products. In standard units both stay as they
    are, so that the features of the E-step and of the M-step are recognised as the same.
    """
    if standard_units():
        return loc, value
    middle = loc.detach().reshape(-1, loc.shape[-1]).mean(0)
    return loc - middle, value - middle


def at_least_tiny(count: Tensor) -> Tensor:
    """A divisor that is never 0; where it would be, the quotient is not used."""
    return count.clamp(min=torch.finfo(count.dtype).tiny)


class Site:
    """Where the parameters of one node lie, as an M-step needs to know it.

    `parents` are the categorical parents whose joint table the statistics come in, with `levels[p]` the axes
    each one has; `tables[parameter]` lists the parents that a parameter itself is indexed by, `shared` the
    parameters that are one value for all dimensions, `fixed` those that no data can change, and `free` marks
    the entries that may change where some are written and some are not. `priors` maps parameters to their priors.
    """

    def __init__(
        self,
        sizes: Sizes,
        levels: Mapping[str, tuple[int, ...]],
        tables: Mapping[str, tuple[str, ...]],
        shared: frozenset[str],
        fixed: frozenset[str],
        free: Mapping[str, Tensor],
        priors: Mapping[str, Any] | None = None,
    ) -> None:
        self.sizes = sizes
        self.levels = dict(levels)
        self.tables = dict(tables)
        self.shared = shared
        self.fixed = fixed
        self.free = dict(free)
        self.priors = dict(priors or {})

    def keep(self, parameter: str, new: Tensor, old: Tensor) -> Tensor:
        """The new values, but for entries that the declaration fixes."""
        return torch.where(self.free[parameter], new, old) if parameter in self.free else new

    @property
    def n_axes(self) -> int:
        """How many leading axes the joint table has."""
        return sum(len(axes) for axes in self.levels.values())

    def _axes_of(self, parameter: str) -> list[int]:
        start, axes = {}, 0
        for parent, levels in self.levels.items():
            start[parent] = range(axes, axes + len(levels))
            axes += len(levels)
        return [axis for parent in self.tables[parameter] for axis in start[parent]]

    def spread(self, table: Tensor, parameter: str) -> Tensor:
        """A parameter's table (own parents as written…, rest) → over the joint table, broadcast by ones."""
        own = self._axes_of(parameter)
        order = sorted(range(len(own)), key=own.__getitem__)
        table = table.permute(*order, *range(len(own), table.ndim))
        shape, rest = iter(table.shape[: len(own)]), table.shape[len(own) :]
        return table.reshape([next(shape) if axis in own else 1 for axis in range(self.n_axes)] + list(rest))

    def gather(self, joint: Tensor, parameter: str) -> Tensor:
        """A sum over the joint table (joint axes…, rest) → over a parameter's own parents, in written order."""
        own = self._axes_of(parameter)
        dropped = [axis for axis in range(self.n_axes) if axis not in own]
        kept = joint.sum(dropped) if dropped else joint
        rank = {axis: position for position, axis in enumerate(sorted(own))}
        return kept.permute(*(rank[axis] for axis in own), *range(len(own), kept.ndim))

    def nested(self, inner: str, outer: str) -> bool:
        """Whether `inner` is constant wherever `outer` is: then `outer`'s estimate does not depend on it."""
        return set(self.tables[inner]) <= set(self.tables[outer])


class Family(ABC):
    """One family of distributions, as the program and the M-step use it.

    A subclass names its distribution's arguments. With sufficient statistics Φ(x), and how its parameters
    maximise Σ w·log p (formula F7.3) given the sums Σ w·Φ, its M-step is closed; without, Newton's method takes
    its place (`infer.newton`).
    """

    reparameterised: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False  # whether the statistics depend on the current parameters
    takes_units: bool = True  # whether `rescale` can bring a real-valued law to other units
    joint: ClassVar[bool] = False  # whether `maximise` is only for parameters all learned on one table
    # By parameter, the priors under which the M-step stays closed (`families.conjugate`).
    conjugate: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    variance_floor: ClassVar[float] = 1e-8  # of a column's variance: the least that a fit may give it
    joined: ClassVar[bool] = False  # whether a row's cells depend on one another given the parents

    def axes(self, parameter: str, sizes: Sizes) -> tuple[int, ...]:
        """The predictor's axes behind the parents': the dimension axis, then the parameter's own."""
        return (sizes.width,)

    @abstractmethod
    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> TorchDistribution:
        """The Pyro distribution with these working parameters, each (*batch, *own axes)."""

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """Φ(x): values (N, D) → features (P, N); of the cells marked in `seen` (N, D) alone.

        By convention the first features count rows: one of them, or D where cells are marked.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sufficient statistics")

    def expected_statistics(
        self,
        weights: Tensor,
        value: Tensor,
        sizes: Sizes,
        *,
        seen: Tensor | None = None,
        current: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Σ_n w_n Φ(x_n): weights (joint axes…, N) → (joint axes…, P).

        `current` holds the working parameters over the joint table, for families whose statistics depend on
        them.
        """
        features = self.statistics(value, sizes, weights.dtype, seen)
        flat = weights.reshape(-1, weights.shape[-1]) @ features.T
        return flat.reshape((*weights.shape[:-1], features.shape[0]))

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Weighted maximum likelihood: (joint axes…, P) sums → working parameters, and whether they are regular.

        `current` holds the working parameters of the step before (kept where a class is empty, and where only
        a conditional maximum is closed), `floor` (D,) the smallest variance of a regular fit, `jitter` (D,) what
        is added to the variance of a column that is constant in the data. The flag is a 0-dimensional bool:
        False where a scale collapsed.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form M-step")

    def closed_form(self, partly_fixed: frozenset[str], shared: frozenset[str]) -> str | None:
        """None, or why these parameters have no closed-form M-step."""
        if type(self).maximise is Family.maximise:
            return f"{type(self).__name__.removesuffix('Family')} gives no sufficient statistics"
        return None

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """Working parameters of one class by moments, from the columns' mean and spread (D,); none by default."""
        del centre, spread
        return {}

    def rescale(
        self,
        working: Mapping[str, Tensor],
        shift: Tensor,
        scale: Tensor,
    ) -> dict[str, Tensor]:
        """The same law for y = (x − shift)/scale; families that are not real-valued are left as they are."""
        return dict(working)

    def support(self, sizes: Sizes) -> Tensor:
        """Every value of a discrete node: (M, width), or (M,) for a scalar."""
        raise NotImplementedError(f"{type(self).__name__} has no finite support")
