"""Which learned numbers of a program carry a prior, and the log-density of all priors at them.

The arguments of the priors are buffers, as the numbers written in a declaration are: they belong to a state, and
move with it into standard units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.data.schema import Schema
from ppl_gen.declare.prior_option import check_prior
from ppl_gen.declare.priors import Dirichlet, InverseGamma, InverseWishart, Prior
from ppl_gen.errors import SpecError
from ppl_gen.program.constraints import Constraint, constraint
from ppl_gen.program.half import Draw, Half
from ppl_gen.program.laws import Law
from ppl_gen.program.layers import LinearLayer, SumLayer, Table

State = dict[str, Tensor]
ROOT = "priors.placed"


@dataclass(frozen=True, eq=False)
class Place:
    """Where a prior stands: whose parameter, and the layer and term it is a prior of.

    `draw` and `key` name the parameter, of which the layer is `part` where it stands in a sum (and `intercept`
    where the sum's intercept is in it); a named value belongs to none.
    """

    name: str
    layer: nn.Module
    term: Any
    constraint: Constraint
    draw: Draw | None = None
    key: str = ""
    part: bool = False
    intercept: bool = False

    @property
    def whole(self) -> str:
        """The parameter that the layer's table is all of, or ""."""
        return "" if self.part or isinstance(self.layer, LinearLayer) else self.key


class PlacedPrior(nn.Module):
    """One learned table or weight with its prior."""

    def __init__(self, place: Place, schema: Schema) -> None:
        super().__init__()
        prior: Prior = place.term.prior
        self.place, self.family = (
            (place,),
            type(prior).__name__,
        )  # in a tuple: the layer is the half's, not ours
        self.squared = isinstance(prior, InverseGamma) and place.whole == "scale"
        try:
            check_prior(prior, place.constraint.name)
            spread = _spread(prior, self.natural())
        except SpecError as error:
            raise SpecError(f"{place.name} {error}", word="prior") from None
        if isinstance(prior, Dirichlet):
            spread = _known_categories(spread, place, schema)
        self.names = tuple(spread)
        for name, value in spread.items():
            self.register_buffer(name, value)

    def natural(self) -> Tensor:
        """The values that the prior is about, on their natural scale."""
        (place,) = self.place
        if isinstance(place.layer, LinearLayer):
            return place.layer.weight
        return place.constraint.natural(self._working())

    def _working(self) -> Tensor:
        (place,) = self.place
        assert isinstance(place.layer, Table)
        entries = place.layer.entries()
        if place.layer.contrast:  # the reference is 0 by definition
            entries = entries.flatten(0, max(0, len(place.layer.lookup.levels) - 1))[1:]
        return place.constraint.working(entries)

    def law(self, arguments: Mapping[str, Tensor] | None = None) -> Law:
        """The prior's law, by default at this module's own arguments."""
        own = {name: getattr(self, name) for name in self.names}
        return Law(self.family, own if arguments is None else arguments, self.squared)

    def varies_over(self, name: str) -> bool:
        """Whether some argument differs between the categories of a node."""
        (place,) = self.place
        lookup: Any = getattr(place.layer, "lookup", None)
        axes: list[int] = []
        position = 0
        for parent, info in zip(lookup.names, lookup.parents, strict=True):
            axes += range(position, position + len(info.table)) if parent == name else []
            position += len(info.table)
        if place.draw is not None and place.draw.name == name and place.draw.node.support == "category":
            axes.append(-1)
        arguments = [getattr(self, own) for own in self.names if own != "lacking"]
        return any(bool((own != own.narrow(axis, 0, 1)).any()) for own in arguments for axis in axes)

    def forward(self) -> Tensor:
        """Σ log p: a scalar."""
        (place,) = self.place
        factor = self._working() if place.constraint.name == "covariance" else None
        return self.law().log_density(self.natural(), factor)


def _spread(prior: Prior, natural: Tensor) -> dict[str, Tensor]:
    """A prior's arguments over the table they are about."""
    arguments = {name: torch.tensor(value, dtype=torch.float64) for name, value in prior.arguments().items()}
    shapes = {name: tuple(natural.shape) for name in arguments}
    if isinstance(prior, InverseWishart):
        D = natural.shape[-1]
        if prior.df <= D - 1:
            raise SpecError(f"has {D} dimensions, so the prior {prior} needs df above {D - 1}")
        shapes["df"] = shapes["df"][:-2]
        if arguments["scale"].ndim == 0:
            arguments["scale"] = arguments["scale"] * torch.eye(D, dtype=torch.float64)
    try:
        return {name: value.broadcast_to(shapes[name]).clone() for name, value in arguments.items()}
    except RuntimeError:
        table = " × ".join(map(str, natural.shape)) or "one number"
        raise SpecError(f"is a table of {table}, onto which the prior {prior} does not broadcast") from None


def _known_categories(spread: dict[str, Tensor], place: Place, schema: Schema) -> dict[str, Tensor]:
    """Concentration 1 for the categories that a column lacks, and how many those are."""
    concentration, draw = spread["concentration"], place.draw
    lacking = torch.zeros(concentration.shape[:-1], dtype=torch.float64)
    if draw is not None and draw.name in schema.levels and getattr(draw.node, "k", None) is None:
        counts = torch.tensor(schema.level_counts(draw.name))
        if draw.sizes.scalar or concentration.shape[-2] != len(counts):
            counts = counts.amax(0, keepdim=not draw.sizes.scalar)
        known = torch.arange(concentration.shape[-1]) < counts.unsqueeze(-1)
        concentration = torch.where(known, concentration, 1.0)
        lacking = (~known).sum(-1).to(torch.float64).expand(lacking.shape).clone()
    return {"concentration": concentration, "lacking": lacking}


class Priors(nn.Module):
    """All priors of a model."""

    def __init__(self, half: Half, schema: Schema) -> None:
        super().__init__()
        self.placed = nn.ModuleList()
        for place in _places(half):
            self.placed.append(PlacedPrior(place, schema))

    def __iter__(self) -> Iterator[PlacedPrior]:
        return iter(self.placed)  # type: ignore[arg-type]

    def forward(self) -> Tensor:
        """Σ log p over all learned numbers with a prior: a scalar, 0 where there is none."""
        return sum((prior() for prior in self), torch.zeros(()))

    def laws_of(self, draw: Draw, state: Mapping[str, Tensor]) -> dict[str, Law]:
        """The laws of a node's parameters, by parameter, with the arguments that a state holds."""
        return {
            prior.place[0].whole: prior.law(self._arguments(position, prior, state))
            for position, prior in enumerate(self)
            if prior.place[0].draw is draw and prior.place[0].whole
        }

    def tells_apart(self, name: str) -> bool:
        """Whether a prior differs between the categories of a node: then they cannot change places."""
        return any(prior.varies_over(name) for prior in self)

    def _arguments(self, position: int, prior: PlacedPrior, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: state[f"{ROOT}.{position}.{name}"] for name in prior.names}


def _places(half: Half) -> Iterator[Place]:
    """Every learned layer whose term has a prior, a shared one once."""
    seen: set[str] = set()
    for draw in half.draws.values():
        for key, slot in draw.slots.items():
            if slot.layer not in seen:
                seen.add(slot.layer)
                own = Place(
                    f"{draw.name}.{key}", half.layers[slot.layer], slot.term, slot.constraint, draw, key
                )
                yield from _parts(own)
    for name, term in half.terms.items():
        if f"{name}:" in half.layers:
            yield from _parts(Place(name, half.layers[f"{name}:"], term, constraint("real")))


def _parts(place: Place) -> Iterator[Place]:
    """The place itself, or the parts of its sum; a weight or part is on the linear predictor's scale."""
    real = constraint("real")
    if not isinstance(place.layer, SumLayer):
        if getattr(place.term, "prior", None) is not None:
            linear = isinstance(place.layer, LinearLayer)
            yield replace(place, constraint=real) if linear else place
        return
    carries = [_carries_intercept(layer) for layer in place.layer.terms]
    for i, (layer, term) in enumerate(zip(place.layer.terms, place.term.terms, strict=True)):
        if getattr(term, "prior", None) is not None:
            first = carries[i] and not any(carries[:i])
            yield replace(place, layer=layer, term=term, constraint=real, part=True, intercept=first)


def _carries_intercept(layer: nn.Module) -> bool:
    return (
        layer.free_bias if isinstance(layer, LinearLayer) else isinstance(layer, Table) and not layer.contrast
    )


def prior_obstacle(draw: Draw) -> str | None:
    """Why the priors of a node's parameters leave its M-step without a closed form, or None."""
    conjugate: Mapping[str, tuple[str, ...]] = getattr(draw.family, "conjugate", {})
    for key, slot in draw.slots.items():
        prior = getattr(slot.term, "prior", None)
        if prior is not None and type(prior).__name__ not in conjugate.get(key, ()):
            return f"the prior {prior} of {draw.name}.{key} is not conjugate, which has no closed-form M-step"
    return None
