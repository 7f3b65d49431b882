"""Declare a latent-variable model, fit it by EM or SVI through Pyro, certify the fit, hand it to ArviZ.

>>> from ppl_gen import By, Categorical, MultivariateNormal, Spec
>>> Spec(model=dict(z=Categorical(3), x=MultivariateNormal(loc=By("z"), cov=By("z"))))
model:
  z: Categorical(3)
  x: MultivariateNormal(loc=By(z), cov=By(z))
"""

from ppl_gen.certify.certificate import Certificate
from ppl_gen.declare.files import read_spec, shipped_models, write_spec
from ppl_gen.declare.nodes import Bernoulli, Categorical, Input, MultivariateNormal, Normal, Poisson
from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class, poisson_mixture, vae
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear, Sum
from ppl_gen.errors import DataError, FitError, SpecError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.status import Status
from ppl_gen.program.program import Program, compile_spec
from ppl_gen.results.fit import Fit
from ppl_gen.results.storage import load

__all__ = [
    "EM",
    "MLP",
    "SVI",
    "Bernoulli",
    "By",
    "Categorical",
    "Certificate",
    "DataError",
    "Fit",
    "FitError",
    "Free",
    "Input",
    "Linear",
    "MultivariateNormal",
    "Normal",
    "Poisson",
    "Program",
    "Spec",
    "SpecError",
    "Status",
    "Sum",
    "compile_spec",
    "fit",
    "gaussian_mixture",
    "latent_class",
    "load",
    "poisson_mixture",
    "read_spec",
    "shipped_models",
    "vae",
    "write_spec",
]
