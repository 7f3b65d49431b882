"""A family of the user's own: one class, registered by a decorator, is a word of the language and can be fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_gen.declare import nodes, notation
from ppl_gen.declare.arguments import NotYet, Size, identifier
from ppl_gen.declare.declared import declared, options
from ppl_gen.declare.node import Node
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Parameter
from ppl_gen.errors import FitError, SpecError
from ppl_gen.program.constraints import logit
from ppl_gen.program.families import FAMILIES
from ppl_gen.program.families.base import (
    Family,
    LazyDistribution,
    Site,
    Sizes,
    at_least_tiny,
    summed_over_cells,
)
from ppl_gen.program.families.cells import always_regular, parted, pool, stacked, where_seen, widened

SUPPORTS = ("real", "positive", "count")
TRIALS = 20
CONSTRAINTS = ("real", "positive", "unit_interval")


def family(cls: type) -> Callable[..., Node]:
    """Make a class a family: a node to declare models with, fitted by EM and SVI, drawn, saved and loaded.

    Cells are independent given the parents. The class has

    - `parameters`: name → "real", "positive" or "unit_interval";
    - `support`: "real", "positive" (above 0) or "count" (0, 1, 2, …): which data are accepted;
    - `distribution(self, **parameters)`: any torch or Pyro distribution of one cell, batched as the parameters
      are, (…, D), in their natural values. Its `log_prob` is what EM's Newton step and SVI differentiate;
    - `log_density(self, x, **parameters)`, optional: the same in NumPy, by its formula and not by torch: what the
      certificate holds the fit against. Without it those lines of the certificate are withheld;
    - `statistics(self, x)` and `maximise(self, n, *sums)`, optional, both or neither: features of a cell, each of
      x's shape, and the maximum-likelihood parameters by name from the rows' weights n and the weighted sums of
      the features (F7.3). They are used where all parameters are learned side by side; elsewhere, and without
      them, the M-step is Newton's.

    A real-valued family with parameters `loc` and `scale` that move with shifts and units of x, which is tried out
    here, is fitted to standardised columns.

    Args:
        cls: the class; its name becomes a word of the language, and may not be one already.

    Returns:
        The node: called with a size and terms, as `Normal` is.

    Raises:
        SpecError: something is missing or misnamed; the message says what.

    Example:
        >>> import torch
        >>> from ppl_gen import By, Categorical, Spec
        >>> @family
        ... class Laplace:
        ...     parameters = {"loc": "real", "scale": "positive"}
        ...     support = "real"
        ...
        ...     def distribution(self, loc, scale):
        ...         return torch.distributions.Laplace(loc, scale)
        >>> print(Spec(model={"z": Categorical(2), "x": Laplace(loc=By("z"), scale=Free())}))
        model:
          z: Categorical(2)
          x: Laplace(loc=By(z), scale=Free())
        <BLANKLINE>

    """
    name = cls.__name__
    _check(cls)
    node = _node(cls)
    nodes.NODES[name] = node
    nodes.WORDS.add(name)
    notation.ENTRY_WORDS[name] = node
    FAMILIES[name] = OwnFamily(cls())
    return node


def own_families(spec: Spec) -> dict[str, str]:
    """The families of a declaration that are not the library's: name → the module that registers it.

    Example:
        >>> from ppl_gen import Normal
        >>> own_families(Spec(model={"x": Normal(1)}))
        {}

    """
    entries = [*spec.model.values(), *(spec.guide or {}).values()]
    return {type(n).__name__: type(n).__module__ for n in entries if _is_own(type(n))}


def check_registered(families: Mapping[str, str]) -> None:
    """Refuse a saved fit whose families are not here.

    Args:
        families: name → the module that registered it.

    Raises:
        FitError: naming the family and the module.

    """
    for name, module in families.items():
        if not _is_own(nodes.NODES.get(name, Node)):
            raise FitError(
                f"the fit uses {name}, a family that is not the library's: import the module that registers "
                f"it with @family ({module}) before loading"
            )


def _is_own(node: type) -> bool:
    return hasattr(node, "definition")


def _check(cls: type) -> None:
    name = cls.__name__
    taken = name in nodes.WORDS and not _is_own(nodes.NODES.get(name, Node))
    if taken:
        raise SpecError(f"{name} is a word of the language already: give the class another name", word=name)
    parameters, support = getattr(cls, "parameters", None), getattr(cls, "support", None)
    if not isinstance(parameters, Mapping) or not parameters:
        raise SpecError(f'{name} lacks parameters, as in parameters = {{"scale": "positive"}}', word=name)
    for key, constraint in parameters.items():
        identifier(key)
        if key in ("dim", "per", "k"):
            raise SpecError(f"{name}'s parameter cannot be called {key}, which every node has", word=key)
        if constraint not in CONSTRAINTS:
            raise SpecError(
                f"{name}'s {key} is {constraint!r}; choose from {', '.join(CONSTRAINTS)}", word=key
            )
    if support not in SUPPORTS:
        raise SpecError(f"{name}'s support is {support!r}; choose from {', '.join(SUPPORTS)}", word=name)
    if not callable(getattr(cls, "distribution", None)):
        raise SpecError(f"{name} lacks distribution(self, {', '.join(parameters)})", word=name)
    if callable(getattr(cls, "statistics", None)) != callable(getattr(cls, "maximise", None)):
        raise SpecError(f"{name} has one of statistics and maximise: it needs both, or neither", word=name)


def _node(cls: Any) -> type[Node]:
    """The declared class: as one written in `declare`, with the parameters all `Free()` by default."""
    fields: dict[str, Any] = {"dim": Size, "_": KW_ONLY}
    density = getattr(cls, "log_density", None)
    body: dict[str, Any] = {
        "dim": None,
        "per": None,
        "support": cls.support,
        "discrete": cls.support == "count",
        "constraints": dict(cls.parameters),
        "definition": cls,
        "log_density": None if density is None else staticmethod(cls().log_density),
        **dict.fromkeys(cls.parameters, Free()),
    }
    fields |= dict.fromkeys(cls.parameters, Parameter) | {"per": NotYet}
    names = {"__annotations__": fields, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    made: type[Node] = declared(type(cls.__name__, (Node,), body | names | {"__doc__": cls.__doc__}))
    assert options(made) == ["dim", *cls.parameters]
    return made


class OwnVector(LazyDistribution):
    """Cells of a user's distribution over the last axis: `cell` has batch shape (*batch, D) and no event."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, name: str, cell: Any, inside: float, validate_args: bool | None = None) -> None:
        if cell.event_shape or not cell.batch_shape:
            raise SpecError(
                f"{name}'s distribution has batch shape {tuple(cell.batch_shape)} and event shape "
                f"{tuple(cell.event_shape)}; it is to be that of one cell, its batch shape the parameters' and "
                "its event shape ()",
                word=name,
            )
        self.cell, self.inside = cell, inside
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
        each = self.cell.log_prob(value)
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
        self.takes_units = definition.support == "real" and self._moves_with_units()

    def _moves_with_units(self) -> bool:
        """Whether loc and scale are what their names say: tried at random values."""
        if self.constraints.get("loc") != "real" or self.constraints.get("scale") != "positive":
            return False
        random = torch.Generator().manual_seed(0)
        draw = torch.rand((len(self.constraints) + 3, TRIALS, 1), generator=random, dtype=torch.float64)
        given = {key: draw[i] * 0.8 + 0.1 for i, key in enumerate(self.constraints)}
        value, shift, unit = 4 * draw[-3] - 2, 4 * draw[-2] - 2, 0.5 + draw[-1]
        moved = {**given, "loc": (given["loc"] - shift) / unit, "scale": given["scale"] / unit}
        there = self.definition.distribution(**moved).log_prob((value - shift) / unit) - unit.log()
        return bool(torch.allclose(self.definition.distribution(**given).log_prob(value), there, rtol=1e-9))

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
        return OwnVector(self.name, self.definition.distribution(**natural), self.inside)

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
            key: torch.where(
                n > 0, logit(found[key]) if kind == "unit_interval" else found[key], current[key]
            )
            for key, kind in self.constraints.items()
        }
        finite = torch.stack([value.isfinite().all() for value in new.values()]).all()
        return new, always_regular(statistics) & finite
