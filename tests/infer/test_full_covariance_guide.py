"""A guide with a full covariance is exact where the posterior is normal, and one without misses what it must."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from ppl_gen.data.reading import read_table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.nodes import MultivariateNormal, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Linear
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.program.program import compile_spec

PRIOR, NOISE = np.array([[1.0, 0.95], [0.95, 1.0]]), 1.0
MARGINAL = PRIOR + NOISE**2 * np.eye(2)
X = np.random.default_rng(2).multivariate_normal([0, 0], MARGINAL, size=200)
EXACT = multivariate_normal(np.zeros(2), MARGINAL).logpdf(X)
PRECISION = np.linalg.inv(PRIOR) + np.eye(2) / NOISE**2  # of the posterior, the same in every row

WRITTEN = """
model:
  z: MultivariateNormal(2, loc=0, cov=[[1, 0.95], [0.95, 1]])
  x: Normal(2, loc=z, scale=1)
guide:
  z: MultivariateNormal(2, loc=Linear(x), scale_tril=Free())
"""


def declared(guide: Normal | MultivariateNormal) -> Spec:
    model = {
        "z": MultivariateNormal(2, loc=0, cov=[[1, 0.95], [0.95, 1]]),
        "x": Normal(2, loc="z", scale=1),
    }
    return Spec(model=model, guide={"z": guide})


def test_python_and_yaml_declare_the_same_guide():
    spec = declared(MultivariateNormal(2, loc=Linear("x"), scale_tril=Free()))
    assert read_spec(WRITTEN) == spec
    assert read_spec(str(spec)) == spec


def test_at_the_true_posterior_the_bound_is_the_log_likelihood_in_every_row():
    program = compile_spec(WRITTEN, {"x": X}, dtype=torch.float64)
    covariance = np.linalg.inv(PRECISION)
    factor = np.linalg.cholesky(covariance)
    with torch.no_grad():
        own = dict(program.recognition.layers.named_parameters())
        own["z:loc.weight"].copy_(torch.from_numpy(covariance / NOISE**2))
        own["z:loc.bias"].zero_()
        packed = [math.log(factor[0, 0]), factor[1, 0], math.log(factor[1, 1])]
        own["z:scale_tril.table"].copy_(torch.tensor(packed, dtype=torch.float64))
        bound = TraceableELBO(3).per_row(program.model, program.guide, {"x": torch.from_numpy(X)})
    np.testing.assert_allclose(bound, EXACT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("lowering", ["eager", "traced"])
def test_it_reaches_the_log_likelihood_and_a_diagonal_one_what_correlations_leave(lowering):
    algorithm = SVI(
        epochs=60, batch_size=50, particles=4, learning_rate=3e-2, schedule="cosine", lowering=lowering
    )
    full = fit(declared(MultivariateNormal(2, loc=Linear("x"), scale_tril=Free())), X, algorithm)
    diagonal = fit(declared(Normal(2, loc=Linear("x"))), X, algorithm)
    # The best diagonal normal has the diagonal of the precision; KL(q ‖ p) = ½ (Σ log Λ_ii − log |Λ|).
    missed = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
    assert full.elbo / 200 == pytest.approx(EXACT.mean(), abs=0.01)
    assert diagonal.elbo / 200 == pytest.approx(EXACT.mean() - missed, abs=0.02)
    assert missed > 0.6
    (gap,) = [line for line in full.certificate.lines if line.name == "objective"]
    assert gap.ok


def test_a_trunk_gives_every_row_a_covariance_of_its_own():
    table = read_table({"x": X}, read_spec("vae_full_covariance"))
    program = compile_spec("vae_full_covariance", table.schema, dtype=torch.float64)
    guide = program.recognition.distribution("z", program.tensors(table.arrays))
    covariance = guide.scale_tril @ guide.scale_tril.mT
    assert covariance.shape == (200, 4, 4)
    assert not torch.equal(covariance[0], covariance[1])
