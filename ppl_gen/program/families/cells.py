"""What families of independent cells have in common: densities by cell, marks of missing cells, pooling."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ppl_gen.program.families.base import (
    LazyDistribution,
    Site,
    as_rows,
    constants,
    counted,
    is_outer,
    outer_log_prob,
    summed_over_cells,
)


class CellVector(LazyDistribution):
    """Independent cells over the last axis, parameters (*batch, D) or (*batch, 1).

    A subclass names its parameters, in the order of the constructor, and gives the log-density of a cell. Where
    that is linear in features of the data alone, `natural_form` saves a tensor of N×K×D.
    """

    names: ClassVar[tuple[str, ...]] = ()
    inside: ClassVar[float] = 0.0  # a value of the support: stands in for a cell that is not seen

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        for name, parameter in zip(self.names, parameters, strict=True):
            setattr(self, name, parameter)
        shape = torch.broadcast_shapes(*(parameter.shape for parameter in parameters))
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def log_cells(self, value: Tensor) -> Tensor:
        """Log p of each cell, broadcast: (*batch and rows, D)."""
        raise NotImplementedError

    def natural_form(self) -> tuple[Tensor, tuple[Tensor, ...]] | None:
        """A constant and the coefficients of `features`, each (*batch, D); None where there is no such form."""
        return None

    def features(self, value: Tensor) -> tuple[Tensor, ...]:
        """What the coefficients are multiplied by: (N, D) each."""
        raise NotImplementedError

    def base_measure(self, value: Tensor) -> Tensor:
        """The part of a cell's log-density that no parameter enters."""
        return torch.zeros_like(value)

    def log_prob(self, value: Tensor) -> Tensor:
        """Σ_i log p(x_i), over the seen cells."""
        if self.seen is not None:
            value = where_seen(value, self.seen, self.inside)
        if self._validate_args:
            self._validate_sample(value)
        rows = value.shape[:-1]
        own = torch.broadcast_shapes(*(getattr(self, name).shape for name in self.names))[:-1]
        form = self.natural_form() if len(own) > 1 and is_outer(own, rows) else None
        if form is None:
            return self._over_batch(summed_over_cells(self.log_cells(value), self.seen), rows)
        constant, coefficients = form
        natural = torch.cat([constants(constant, self.seen), *coefficients], -1)
        features = stacked(self.features(as_rows(value)), self.seen)
        base = summed_over_cells(self.base_measure(value), self.seen)
        return self._over_batch(outer_log_prob(natural, features) + base, rows)

    def _wide(self, parameter: Tensor, sample_shape: Any) -> Tensor:
        return parameter.expand(self._draw_shape(sample_shape))

    def _over_cells(self, each: Tensor) -> Tensor:
        return each.expand(self._batch_shape + self._event_shape)


def where_seen(value: Tensor, seen: Tensor | None, inside: float) -> Tensor:
    """The values (N, D), with one of the support where nothing is seen: log 0 times 0 is no number."""
    return value if seen is None else torch.where(seen > 0, value, inside)


def stacked(features: tuple[Tensor, ...], seen: Tensor | None) -> Tensor:
    """Features (N, D) each, behind the count of rows: (P, N), 0 where nothing is seen."""
    columns = [feature.T if seen is None else (feature * seen).T for feature in features]
    return torch.cat([counted(columns[0], seen), *columns])


def parted(statistics: Tensor, count: int, width: int) -> list[Tensor]:
    """Statistics (…, P) as the count (…, 1 or D) and `count` sums (…, D)."""
    return list(statistics.split([statistics.shape[-1] - count * width, *[width] * count], -1))


def pool(joint: Tensor, site: Site, parameter: str) -> Tensor:
    """A sum over the joint table as one over a parameter's own table, and over dimensions where it is shared."""
    table = site.gather(joint, parameter)
    return table.sum(-1, keepdim=True) if parameter in site.shared else table


def narrow(per_column: Tensor, like: Tensor) -> Tensor:
    """Numbers by column (D,), or their largest where one value serves all dimensions."""
    return per_column.amax(-1, keepdim=True) if like.shape[-1] == 1 else per_column


def widened(table: Tensor, width: int) -> Tensor:
    """One value for all dimensions, written out for each."""
    return table.expand((*table.shape[:-1], width))


def always_regular(statistics: Tensor) -> Tensor:
    """The flag of a family whose parameters cannot collapse."""
    return torch.ones_like(statistics.sum(), dtype=torch.bool)
