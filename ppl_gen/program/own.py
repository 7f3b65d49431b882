"""A family of the user's own: one class, registered by a decorator, is a word of the language and can be fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY
from typing import Any

from ppl_gen.declare import nodes, notation
from ppl_gen.declare.arguments import NotYet, Size, identifier
from ppl_gen.declare.declared import declared, options
from ppl_gen.declare.node import Node
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Parameter
from ppl_gen.errors import FitError, SpecError
from ppl_gen.program.families import FAMILIES
from ppl_gen.program.own_family import OwnFamily

SUPPORTS = ("real", "positive", "count")
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
      them, the M-step is Newton's;
    - `beginning(self, mean, sd)`, optional: parameters by name for columns of that mean and standard deviation,
      where fits begin. Without it a `loc` begins at the mean and a `scale` at the deviation, if they are such.

    A real-valued family whose `loc` and `scale` move with shifts and units of x, which is tried out here, is fitted
    to standardised columns.

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
    FAMILIES[name] = OwnFamily(cls())
    nodes.NODES[name] = node
    nodes.WORDS.add(name)
    notation.ENTRY_WORDS[name] = node
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
