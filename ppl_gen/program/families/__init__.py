"""The families the program can compile: a node's name → how Pyro draws it and how EM maximises it."""

from ppl_gen.program.families.base import Family, Site, Sizes, in_standard_units
from ppl_gen.program.families.bernoulli import BernoulliFamily
from ppl_gen.program.families.categorical import CategoricalFamily
from ppl_gen.program.families.multivariate_normal import MultivariateNormalFamily
from ppl_gen.program.families.normal import NormalFamily
from ppl_gen.program.families.poisson import PoissonFamily

FAMILIES: dict[str, Family] = {
    "Bernoulli": BernoulliFamily(),
    "Categorical": CategoricalFamily(),
    "MultivariateNormal": MultivariateNormalFamily(),
    "Normal": NormalFamily(),
    "Poisson": PoissonFamily(),
}

__all__ = ["FAMILIES", "Family", "Site", "Sizes", "in_standard_units"]
