"""The families the program can compile: a node's name → how Pyro draws it and how EM maximises it.

Every module of this folder is read: its class `GammaFamily` is the family of the node `Gamma`.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ppl_gen.program.families.base import Family, Site, Sizes, in_standard_units

__all__ = ["FAMILIES", "Family", "Site", "Sizes", "in_standard_units"]


def _collected() -> dict[str, Family]:
    found: dict[str, Family] = {}
    for module in iter_modules(__path__, f"{__name__}."):
        for name, thing in vars(import_module(module.name)).items():
            own = getattr(thing, "__module__", "") == module.name
            if own and thing is not Family and isinstance(thing, type) and issubclass(thing, Family):
                found[name.removesuffix("Family")] = thing()
    return dict(sorted(found.items()))


FAMILIES: dict[str, Family] = _collected()
