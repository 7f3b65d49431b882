"""Declare a latent-variable model, fit it by EM or SVI through Pyro, certify the fit, hand it to ArviZ.

>>> from ppl_gen import By, Categorical, MultivariateNormal, Spec
>>> mixture = Spec(model=dict(z=Categorical(3), x=MultivariateNormal(loc=By("z"), cov=By("z"))))
>>> mixture.model["x"]
MultivariateNormal(loc=By(z), cov=By(z))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppl_gen.certify.certificate import Certificate
    from ppl_gen.data.sources import Rows
    from ppl_gen.declare.files import read_spec, shipped_models, write_spec
    from ppl_gen.declare.nodes import (
        Bernoulli,
        Binomial,
        Categorical,
        Exponential,
        Flow,
        Gamma,
        Input,
        LogNormal,
        MultivariateNormal,
        MultivariateStudentT,
        NegativeBinomial,
        Normal,
        Poisson,
        StudentT,
    )
    from ppl_gen.declare.phrasebook import (
        factor_analysis,
        gaussian_mixture,
        latent_class,
        poisson_mixture,
        probabilistic_pca,
        student_t_mixture,
        vae,
    )
    from ppl_gen.declare.priors import Beta, Dirichlet, HalfCauchy, HalfNormal, InverseGamma, InverseWishart
    from ppl_gen.declare.spec import Spec
    from ppl_gen.declare.terms import MLP, By, Conv, Free, Linear, Net, Sum
    from ppl_gen.errors import DataError, FitError, SpecError
    from ppl_gen.evaluation import evaluate
    from ppl_gen.fitting import fit
    from ppl_gen.fitting_pyro import fit_pyro
    from ppl_gen.infer.algorithms import EM, SVI, StepwiseEM
    from ppl_gen.infer.callbacks import Callback, MLflow, TensorBoard
    from ppl_gen.infer.checkpoints import Checkpoints
    from ppl_gen.infer.status import Status
    from ppl_gen.program.own import family
    from ppl_gen.program.program import Program, compile_spec
    from ppl_gen.resampling import Bootstrap, bootstrap
    from ppl_gen.results.evaluation import Evaluation
    from ppl_gen.results.fit import Fit
    from ppl_gen.results.pyro_fit import PyroFit
    from ppl_gen.results.storage import load
    from ppl_gen.resuming import resume
    from ppl_gen.selecting.choosing import select
    from ppl_gen.selecting.selection import Selection

# Where each public name lives. It is imported when it is first asked for: torch and Pyro take seconds, and
# declaring a model, reading one, and `ppl-gen --help` need neither.
_HOMES = {
    "Flow": "declare.nodes",
    "Net": "declare.terms",
    "Conv": "declare.terms",
    "EM": "infer.algorithms",
    "MLP": "declare.terms",
    "SVI": "infer.algorithms",
    "Bernoulli": "declare.nodes",
    "Beta": "declare.priors",
    "Binomial": "declare.nodes",
    "Bootstrap": "resampling",
    "By": "declare.terms",
    "Callback": "infer.callbacks",
    "Categorical": "declare.nodes",
    "Certificate": "certify.certificate",
    "Checkpoints": "infer.checkpoints",
    "DataError": "errors",
    "Dirichlet": "declare.priors",
    "Evaluation": "results.evaluation",
    "Exponential": "declare.nodes",
    "Fit": "results.fit",
    "FitError": "errors",
    "Free": "declare.terms",
    "Gamma": "declare.nodes",
    "HalfCauchy": "declare.priors",
    "HalfNormal": "declare.priors",
    "Input": "declare.nodes",
    "InverseGamma": "declare.priors",
    "InverseWishart": "declare.priors",
    "Linear": "declare.terms",
    "LogNormal": "declare.nodes",
    "MLflow": "infer.callbacks",
    "MultivariateNormal": "declare.nodes",
    "MultivariateStudentT": "declare.nodes",
    "NegativeBinomial": "declare.nodes",
    "Normal": "declare.nodes",
    "Poisson": "declare.nodes",
    "Program": "program.program",
    "PyroFit": "results.pyro_fit",
    "Rows": "data.sources",
    "Selection": "selecting.selection",
    "Spec": "declare.spec",
    "SpecError": "errors",
    "Status": "infer.status",
    "StepwiseEM": "infer.algorithms",
    "StudentT": "declare.nodes",
    "Sum": "declare.terms",
    "TensorBoard": "infer.callbacks",
    "bootstrap": "resampling",
    "compile_spec": "program.program",
    "evaluate": "evaluation",
    "family": "program.own",
    "fit": "fitting",
    "fit_pyro": "fitting_pyro",
    "factor_analysis": "declare.phrasebook",
    "gaussian_mixture": "declare.phrasebook",
    "latent_class": "declare.phrasebook",
    "load": "results.storage",
    "poisson_mixture": "declare.phrasebook",
    "probabilistic_pca": "declare.phrasebook",
    "read_spec": "declare.files",
    "resume": "resuming",
    "select": "selecting.choosing",
    "shipped_models": "declare.files",
    "student_t_mixture": "declare.phrasebook",
    "vae": "declare.phrasebook",
    "write_spec": "declare.files",
}

__all__ = [
    "EM",
    "MLP",
    "SVI",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Bootstrap",
    "By",
    "Callback",
    "Categorical",
    "Certificate",
    "Checkpoints",
    "Conv",
    "DataError",
    "Dirichlet",
    "Evaluation",
    "Exponential",
    "Fit",
    "FitError",
    "Flow",
    "Free",
    "Gamma",
    "HalfCauchy",
    "HalfNormal",
    "Input",
    "InverseGamma",
    "InverseWishart",
    "Linear",
    "LogNormal",
    "MLflow",
    "MultivariateNormal",
    "MultivariateStudentT",
    "NegativeBinomial",
    "Net",
    "Normal",
    "Poisson",
    "Program",
    "PyroFit",
    "Rows",
    "Selection",
    "Spec",
    "SpecError",
    "Status",
    "StepwiseEM",
    "StudentT",
    "Sum",
    "TensorBoard",
    "bootstrap",
    "compile_spec",
    "evaluate",
    "factor_analysis",
    "family",
    "fit",
    "fit_pyro",
    "gaussian_mixture",
    "latent_class",
    "load",
    "poisson_mixture",
    "probabilistic_pca",
    "read_spec",
    "resume",
    "select",
    "shipped_models",
    "student_t_mixture",
    "vae",
    "write_spec",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ppl_gen' has no attribute {name!r}")
    found = getattr(import_module(f"ppl_gen.{_HOMES[name]}"), name)
    globals()[name] = found  # the next time it is simply there
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
