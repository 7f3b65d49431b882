"""What stands after `prior=`, and which parameters it fits.

`Normal(loc=0, scale=10)` is a node in Python and in the text form alike: where a prior is expected, a node whose
parameters are all numbers is read as the prior of its name.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator

from ppl_gen.declare.arguments import shown
from ppl_gen.declare.declared import Declared
from ppl_gen.declare.priors import PRIORS, Dirichlet, Prior
from ppl_gen.declare.quantities import shape
from ppl_gen.errors import SpecError


def as_prior(value: object) -> Prior | None:
    """Read what stands after `prior=`: a prior, or a node of the same name whose parameters are numbers.

    Raises:
        SpecError: for anything else; the message begins with a verb.

    Example:
        >>> from ppl_gen import Normal
        >>> type(as_prior(Normal(loc=0, scale=1))).__module__
        'ppl_gen.declare.priors'

    """
    if value is None or isinstance(value, Prior):
        return value
    name, choices = type(value).__name__, ", ".join(PRIORS)
    if not isinstance(value, Declared) or not hasattr(value, "family"):
        raise SpecError(f"must be one of {choices}, with numbers as arguments, got {shown(value)}")
    if name not in PRIORS:
        raise SpecError(f"cannot be {value}; priors: {choices}")
    if getattr(value, "dim", None) is not None:
        raise SpecError(f"takes no size, which is the parameter's, got {value}")
    arguments = {}
    for field in dataclasses.fields(PRIORS[name]):  # type: ignore[arg-type]
        written: Any = getattr(value, field.name, None)
        if not hasattr(written, "value") or not hasattr(written, "cells"):
            given = f"its {field.name} is {written}"
            raise SpecError(
                f"takes numbers as the arguments of {name}, and there are no hyperpriors; {given}"
            )
        arguments[field.name] = written.value
    return PRIORS[name](**arguments)


PriorOption: TypeAlias = Annotated[Prior | None, BeforeValidator(as_prior)]


def check_prior(prior: Prior, constraint: str, k: int | None = None) -> None:
    """Hold a prior against the constraint of its parameter, and a list of concentrations against k.

    Raises:
        SpecError: the message begins with a verb.

    Example:
        >>> from ppl_gen.declare.priors import Beta
        >>> check_prior(Beta(concentration1=1, concentration0=2), "unit_interval")

    """
    if constraint not in prior.fits:
        fitting = [name for name, cls in PRIORS.items() if constraint in cls.fits]
        spoken = constraint.replace("_", " ")
        said = f"priors of a {spoken} parameter: {', '.join(fitting)}"
        if not fitting:
            said = f"no prior is known for a {spoken} parameter"
        raise SpecError(f"cannot have the prior {prior}; {said}", word="prior")
    sizes = shape(prior.concentration) if isinstance(prior, Dirichlet) else ()
    if k is not None and sizes and sizes[-1] not in (1, k):
        raise SpecError(f"has {k} categories, but the prior {prior} has {sizes[-1]}", word="prior")
