"""What the program and the M-step make of a user's class: a vector of its cells, and a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.errors import FitError, SpecError
from ppl_gen.program.constraints import logit
from ppl_gen.program.families.base import (
    Family,
    LazyDistribution,
    Site,
    Sizes,
    at_least_tiny,
    summed_over_cells,
)
from ppl_gen.program.families.cells import always_regular, parted, pool, stacked, where_seen, widened

TRIALS = 20  # random values at which a user's distribution is tried


class OwnVector(LazyDistribution):
    """Cells of a user's distribution over the last axis: `cell` has batch shape (*batch, D) and no event.

    `inside` is a value of its support, `owner` the family's name.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, cell: Any, inside: float, owner: str, validate_args: bool | None = None) -> None:
        self.cell, self.inside, self.owner = cell, inside, owner
        self.has_rsample = cell.has_rsample
        super().__init__(cell.batch_shape[:-1], cell.batch_shape[-1:], validate_args=validate_args)

    @constraints.dependent_property  # type: ignore[untyped-decorator]
    def support(self) -> Any:
        """The cell's, over the last axis."""
        return constraints.independent(self.cell.support, 1)

    @property
    def mean(self) -> Tensor:
        """The cell's, over the whole batch."""
        return self.cell.mean.expand(self._batch_shape + self._event_shape)

    @property
    def variance(self) -> Tensor:
        """The cell's, over the whole batch."""
        return self.cell.variance.expand(self._batch_shape + self._event_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws of the cell, with its gradients."""
        return self.cell.expand(self._batch_shape + self._event_shape).rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draws of the cell."""
        with torch.no_grad():
            return self.cell.expand(self._batch_shape + self._event_shape).sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The cells' log p, summed over those that are seen."""
        value = where_seen(value, self.seen, self.inside)
        if self._validate_args:
            self._validate_sample(value)
        try:
            each = self.cell.log_prob(value)
        except FitError as error:  # of what records steps: it knows the operation and not whose it is
            raise FitError(f"{self.owner}'s log_prob: {error}") from error
        except RuntimeError as error:
            if not str(error).startswith("vmap:"):
                raise
            raise FitError(
                f"{self.owner}'s log_prob does different operations for different values, which restarts side by "
                "side cannot: use torch.where, or EM(restarts=1)"
            ) from error
        return self._over_batch(summed_over_cells(each, self.seen), value.shape[:-1])


class OwnFamily(Family):
    """What the program and the M-step make of a user's class."""

    reparameterised = True
    joint = True

    def __init__(self, definition: Any) -> None:
        self.definition = definition
        self.name = type(definition).__name__
        self.constraints: dict[str, str] = dict(definition.parameters)
        self.inside = 0.0 if definition.support == "real" else 1.0
        random = torch.Generator().manual_seed(0)
        draw = torch.rand((len(self.constraints) + 3, TRIALS, 1), generator=random, dtype=torch.float64)
        given = {key: draw[i] * 0.8 + 0.1 for i, key in enumerate(self.constraints)}
        self._try(given)
        self.takes_units = definition.support == "real" and self._moves_with_units(given, draw[-3:])

    def _try(self, given: Mapping[str, Tensor]) -> None:
        try:
            cell = self.definition.distribution(**given)
            batch, event = tuple(cell.batch_shape), tuple(cell.event_shape)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise SpecError(
                f"{self.name}'s distribution fails at {', '.join(given)} between 0.1 and 0.9: {error}"
            ) from error
        if event or batch != (TRIALS, 1):
            raise SpecError(
                f"{self.name}'s distribution has batch shape {batch} and event shape {event} where the parameters' "
                f"shape is {(TRIALS, 1)}; it is to be that of one cell, with their shape as its batch shape",
                word=self.name,
            )

    def _moves_with_units(self, given: Mapping[str, Tensor], draw: Tensor) -> bool:
        """Whether loc and scale are what their names say: tried at random values."""
        if self.constraints.get("loc") != "real" or self.constraints.get("scale") != "positive":
            return False
        value, shift, unit = 4 * draw[0] - 2, 4 * draw[1] - 2, 0.5 + draw[2]
        moved = {**given, "loc": (given["loc"] - shift) / unit, "scale": given["scale"] / unit}
        there = self.definition.distribution(**moved).log_prob((value - shift) / unit) - unit.log()
        return bool(torch.allclose(self.definition.distribution(**given).log_prob(value), there, rtol=1e-9))

    def beginning(self, centre: Tensor, spread: Tensor) -> dict[str, Tensor]:
        """By the user's own rule; else a location and a scale at the columns' mean and spread."""
        if hasattr(self.definition, "beginning"):
            begun: Mapping[str, Tensor] = self.definition.beginning(centre, spread)
            return {key: self._working(key, value) for key, value in begun.items()}
        return {"loc": centre, "scale": spread} if self.takes_units else {}

    def _working(self, key: str, natural: Tensor) -> Tensor:
        return logit(natural) if self.constraints[key] == "unit_interval" else natural

    def rescale(self, working: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
        """Loc and scale in units of `scale`, from `shift`; the other parameters have no unit."""
        if not self.takes_units:
            return dict(working)
        loc, spread = working["loc"], working["scale"]
        moved = (loc - shift[..., : loc.shape[-1]]) / scale[..., : loc.shape[-1]]
        return {**working, "loc": moved, "scale": spread / scale[..., : spread.shape[-1]]}

    def distribution(self, working: Mapping[str, Tensor], sizes: Sizes) -> OwnVector:
        """The user's distribution at the parameters' natural values."""
        natural = {
            key: torch.sigmoid(value) if self.constraints[key] == "unit_interval" else value
            for key, value in working.items()
        }
        first = next(iter(natural))
        natural[first] = widened(natural[first], sizes.width)
        return OwnVector(self.definition.distribution(**natural), self.inside, self.name)

    def closed_form(self, partly_fixed: frozenset[str], shared: frozenset[str]) -> str | None:
        """Where the class says how, and all parameters are learned alike."""
        if not hasattr(self.definition, "maximise"):
            return f"{self.name} gives no sufficient statistics"
        if partly_fixed or shared not in (frozenset(), frozenset(self.constraints)):
            return f"the parameters of {self.name} are not learned side by side"
        return None

    def statistics(
        self, value: Tensor, sizes: Sizes, dtype: torch.dtype, seen: Tensor | None = None
    ) -> Tensor:
        """1, then the user's features."""
        features = tuple(self.definition.statistics(where_seen(value.to(dtype), seen, self.inside)))
        return stacked(features, seen)

    def maximise(
        self, statistics: Tensor, current: Mapping[str, Tensor], site: Site, floor: Tensor, jitter: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The user's estimates, class by class; kept where a class is empty."""
        width, first = site.sizes.width, next(iter(current))
        n, *sums = parted(statistics, (statistics.shape[-1] - 1) // width, width)
        n = pool(n.expand_as(sums[0]), site, first)
        found = self.definition.maximise(at_least_tiny(n), *(pool(total, site, first) for total in sums))
        new = {
            key: torch.where(n > 0, self._working(key, found[key]), current[key]) for key in self.constraints
        }
        finite = torch.stack([value.isfinite().all() for value in new.values()]).all()
        return new, always_regular(statistics) & finite
