"""Each line of a certificate fails when what it answers for is spoilt, and no other line does.

A sabotage changes the run, the program's parameters, or what Pyro says for one line: a flipped sign, σ for σ²,
one row's responsibility, two permuted parameters.
"""

from __future__ import annotations

import copy
import dataclasses
from contextlib import contextmanager

import numpy as np
import pyro.infer.trace_mean_field_elbo
import pytest
import torch

from ppl_gen import reference
from ppl_gen.certify import bounds, evidence
from ppl_gen.certify.certify import certify
from ppl_gen.certify.subject import first_rows
from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Bernoulli, Categorical, Normal
from ppl_gen.declare.priors import Dirichlet, InverseGamma
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.em import run_em
from ppl_gen.infer.status import Status
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.families.normal import DiagonalNormal
from ppl_gen.program.program import compile_spec

MIXTURE = Spec(model={"z": Categorical(2), "x": Normal(2, loc=By("z"), scale=By("z"))})
POSTERIOR = Spec(
    model={
        "z": Categorical(2, probs=Free(prior=Dirichlet(concentration=3))),
        "x": Normal(
            2,
            loc=By("z", prior=Normal(loc=[0, 5], scale=2)),
            scale=By("z", prior=InverseGamma(concentration=3, rate=2)),
        ),
    }
)
VAE = Spec(
    model={"z": Normal(2, loc=0, scale=1), "x": Normal(3, loc=MLP("z", [6]), scale=Free())},
    guide={"z": Normal(2, loc=MLP("x", [6]), scale=MLP("x", [6]))},
)
FACTORS = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(4, loc=Linear("z"), scale=Free())})
LOC = "generative.layers.x:loc.table"
SCALE = "generative.layers.x:scale.table"


def fitted(spec, x, algorithm):
    table = read_table({"x": x}, spec)
    program = compile_spec(spec, table.schema)
    run = (run_em if isinstance(algorithm, EM) else run_svi)(program, table, algorithm)
    program.load_state_dict(run.state)
    return program, run, table


@pytest.fixture(scope="module")
def fits():
    rng = np.random.default_rng(0)
    classes = np.concatenate([rng.normal(0, [1, 3], (60, 2)), rng.normal(4, [2, 1], (40, 2))])
    wide = rng.normal(size=(80, 2)) @ rng.normal(size=(2, 4)) + rng.normal(size=(80, 4))
    return {
        "mixture": fitted(MIXTURE, classes, EM(restarts=2, lowering="eager")),
        "posterior": fitted(POSTERIOR, classes, EM(restarts=2, lowering="eager")),
        "vae": fitted(VAE, wide[:, :3], SVI(epochs=3, batch_size=40, lowering="eager")),
        "factors": fitted(FACTORS, wide, SVI(epochs=3, batch_size=40, lowering="eager")),
    }


def broken(monkeypatch, where, name, spoil):
    """Put `spoil(original, …)` in the place of a function."""
    original = getattr(where, name)
    monkeypatch.setattr(where, name, lambda *args, **kwargs: spoil(original, *args, **kwargs))


@contextmanager
def square_root_of_the_scale():
    """The normal's density with σ where σ² belongs."""
    original = DiagonalNormal.log_prob
    DiagonalNormal.log_prob = lambda self, x: original(DiagonalNormal(self.loc, self.scale.sqrt()), x)
    try:
        yield
    finally:
        DiagonalNormal.log_prob = original


def confused_scale(original, *args, **kwargs):
    with square_root_of_the_scale():
        return original(*args, **kwargs)


def permuted(path):
    """Two neighbouring parameters exchanged."""

    def spoil(original, subject, *args):
        values = subject.state[path].clone()
        flat = values.view(-1)
        flat[[0, 1]] = flat[[1, 0]]
        return original(dataclasses.replace(subject, state=subject.state | {path: values}), *args)

    return spoil


def moved(fit, path, change):
    program, run, table = fit
    spoilt = copy.deepcopy(program)
    with torch.no_grad():
        parameter = dict(spoilt.named_parameters())[path]
        parameter.copy_(change(parameter))
    return spoilt, run, table


def ascent_with_one_step_down(monkeypatch, fit):
    program, run, table = fit
    history = np.array(run.history)
    history[1] = history[0] - (history[1] - history[0])  # the sign of one rise
    return program, dataclasses.replace(run, history=tuple(history)), table


def objective_with_a_flipped_sign(monkeypatch, fit):
    broken(monkeypatch, evidence, "log_marginal", lambda original, subject: -original(subject))
    return fit


def objective_with_sigma_for_sigma_squared(monkeypatch, fit):
    broken(monkeypatch, evidence, "log_marginal", confused_scale)
    return fit


def objective_with_two_permuted_parameters(monkeypatch, fit):
    broken(monkeypatch, evidence, "log_marginal", permuted(LOC))
    return fit


def responsibilities_with_one_row_wrong(monkeypatch, fit):
    def spoil(original, subject):
        found = original(subject)
        found["z"] = found["z"].copy()
        found["z"][:, 7] = found["z"][::-1, 7]
        return found

    broken(monkeypatch, evidence, "responsibilities", spoil)
    return fit


def responsibilities_with_one_row_a_millionth_off(monkeypatch, fit):
    def spoil(original, subject):
        found = original(subject)
        found["x"] = found["x"].copy()
        found["x"][:, 7] += [1e-6, -1e-6]
        return found

    broken(monkeypatch, evidence, "responsibilities", spoil)
    return fit


def gap_with_one_row_of_the_posterior_wrong(monkeypatch, fit):
    def spoil(original, subject):
        q = original(subject)
        q[7] = q[7, ::-1]
        return q

    broken(monkeypatch, evidence, "posterior", spoil)
    return fit


def gap_with_sigma_for_sigma_squared_in_the_posterior(monkeypatch, fit):
    broken(monkeypatch, evidence, "posterior", confused_scale)
    return fit


def information_with_a_flipped_sign(monkeypatch, fit):
    def spoil(original, subject):
        phi, matrix = original(subject)
        return phi, -matrix

    broken(monkeypatch, evidence, "information", spoil)
    return fit


def information_with_one_covariance_a_thousandth_off(monkeypatch, fit):
    def spoil(original, subject):
        phi, matrix = original(subject)
        matrix[0, 1] *= 1.001
        matrix[1, 0] *= 1.001
        return phi, matrix

    broken(monkeypatch, evidence, "information", spoil)
    return fit


def information_with_sigma_for_sigma_squared(monkeypatch, fit):
    broken(monkeypatch, evidence, "information", confused_scale)
    return fit


def information_with_two_permuted_parameters(monkeypatch, fit):
    broken(monkeypatch, evidence, "information", permuted(LOC))
    return fit


def gradient_with_sigma_for_sigma_squared_stored(monkeypatch, fit):
    return moved(fit, SCALE, lambda log_scale: 2 * log_scale)


def gradient_with_two_permuted_parameters_stored(monkeypatch, fit):
    return moved(fit, LOC, lambda loc: loc.flip(0))


def gradient_of_flipped_mixing_weights(monkeypatch, fit):
    return moved(fit, "generative.layers.z:probs.table", lambda logits: -logits)


def sampled_bound_with_the_sign_of_log_q_flipped(monkeypatch, fit):
    def spoil(original, self, *args):
        log_p, log_q, _, _ = self._terms(*args, {})
        return (log_p + log_q).reshape(self.num_particles, -1).mean(0)

    monkeypatch.setattr(
        TraceableELBO, "per_row", lambda self, model, guide, *args: spoil(None, self, model, guide, args)
    )
    return fit


def sampled_bound_with_sigma_for_sigma_squared(monkeypatch, fit):
    broken(monkeypatch, evidence, "sampled_bound", confused_scale)
    return fit


def sampled_bound_with_two_permuted_parameters(monkeypatch, fit):
    broken(monkeypatch, evidence, "sampled_bound", permuted(SCALE))
    return fit


def closed_form_with_the_sign_of_the_kl_flipped(monkeypatch, fit):
    elbo = pyro.infer.trace_mean_field_elbo
    broken(monkeypatch, elbo, "kl_divergence", lambda original, q, p: -original(q, p))
    return fit


def closed_form_with_sigma_for_sigma_squared(monkeypatch, fit):
    def spoil(original, q, p):
        return original(DiagonalNormal(q.loc, q.scale.sqrt()), p)

    broken(monkeypatch, pyro.infer.trace_mean_field_elbo, "kl_divergence", spoil)
    return fit


def closed_form_with_two_permuted_parameters(monkeypatch, fit):
    broken(monkeypatch, evidence, "closed_bound", permuted(SCALE))
    return fit


def gap_with_the_sign_of_log_q_flipped(monkeypatch, fit):
    def ratios(self, log_p, log_q, weights, axes):
        return (log_p + log_q).reshape(self.num_particles, -1)

    monkeypatch.setattr(TraceableELBO, "_ratios", ratios)
    return fit


def affine_gap_with_the_sign_of_the_kl_flipped(monkeypatch, fit):
    broken(monkeypatch, reference, "kl_multivariate_normal", lambda original, *args: -original(*args))
    return fit


def affine_gap_with_two_permuted_parameters(monkeypatch, fit):
    def spoil(original, subject):
        decoder = original(subject)
        return dataclasses.replace(decoder, b=decoder.b[[1, 0, 2, 3]])

    broken(monkeypatch, bounds, "affine_decoder", spoil)
    return fit


def affine_gap_with_sigma_for_sigma_squared(monkeypatch, fit):
    def spoil(original, subject):
        decoder = original(subject)
        return dataclasses.replace(decoder, psi=np.sqrt(decoder.psi))

    broken(monkeypatch, bounds, "affine_decoder", spoil)
    return fit


def prior_with_a_flipped_sign(monkeypatch, fit):
    broken(monkeypatch, evidence, "log_prior", lambda original, subject: -original(subject))
    return fit


def prior_of_sigma_for_sigma_squared(monkeypatch, fit):
    def spoil(original, subject):
        with monkeypatch.context() as for_now:
            for prior in subject.program.priors:
                for_now.setattr(prior, "squared", False)
            return original(subject)

    broken(monkeypatch, evidence, "log_prior", spoil)
    return fit


def prior_with_two_permuted_parameters(monkeypatch, fit):
    broken(monkeypatch, evidence, "log_prior", permuted(LOC))
    return fit


def information_along_a_direction_with_a_flipped_sign(monkeypatch, fit):
    monkeypatch.setattr("ppl_gen.certify.certify.MOST_LEARNED", 1)  # no matrix: along directions alone
    broken(monkeypatch, evidence, "curvature_along", lambda original, *args: -original(*args))
    return fit


def information_along_a_direction_with_sigma_for_sigma_squared(monkeypatch, fit):
    monkeypatch.setattr("ppl_gen.certify.certify.MOST_LEARNED", 1)
    broken(monkeypatch, evidence, "curvature_along", confused_scale)
    return fit


def information_along_a_direction_with_two_permuted_parameters(monkeypatch, fit):
    monkeypatch.setattr("ppl_gen.certify.certify.MOST_LEARNED", 1)
    broken(monkeypatch, evidence, "curvature_along", permuted(LOC))
    return fit


def information_along_a_direction_without_one_of_the_rows(monkeypatch, fit):
    monkeypatch.setattr("ppl_gen.certify.certify.MOST_LEARNED", 1)

    def spoil(original, subject, directions):
        return original(first_rows(subject, subject.table.n_units - 1), directions)

    broken(monkeypatch, evidence, "curvature_along", spoil)
    return fit


SABOTAGES = [
    ("ascent", "mixture", ascent_with_one_step_down),
    ("objective", "mixture", objective_with_a_flipped_sign),
    ("objective", "mixture", objective_with_sigma_for_sigma_squared),
    ("objective", "mixture", objective_with_two_permuted_parameters),
    ("responsibilities", "mixture", responsibilities_with_one_row_wrong),
    ("responsibilities", "mixture", responsibilities_with_one_row_a_millionth_off),
    ("gap", "mixture", gap_with_one_row_of_the_posterior_wrong),
    ("gap", "mixture", gap_with_sigma_for_sigma_squared_in_the_posterior),
    ("information", "mixture", information_with_a_flipped_sign),
    ("information", "mixture", information_with_one_covariance_a_thousandth_off),
    ("information", "mixture", information_with_sigma_for_sigma_squared),
    ("information", "mixture", information_with_two_permuted_parameters),
    ("information", "mixture", information_along_a_direction_with_a_flipped_sign),
    ("information", "mixture", information_along_a_direction_with_sigma_for_sigma_squared),
    ("information", "mixture", information_along_a_direction_with_two_permuted_parameters),
    ("information", "mixture", information_along_a_direction_without_one_of_the_rows),
    ("gradient", "mixture", gradient_with_sigma_for_sigma_squared_stored),
    ("gradient", "mixture", gradient_with_two_permuted_parameters_stored),
    ("gradient", "mixture", gradient_of_flipped_mixing_weights),
    ("prior", "posterior", prior_with_a_flipped_sign),
    ("prior", "posterior", prior_of_sigma_for_sigma_squared),
    ("prior", "posterior", prior_with_two_permuted_parameters),
    ("gradient", "posterior", gradient_with_two_permuted_parameters_stored),
    ("objective", "vae", sampled_bound_with_the_sign_of_log_q_flipped),
    ("objective", "vae", sampled_bound_with_sigma_for_sigma_squared),
    ("objective", "vae", sampled_bound_with_two_permuted_parameters),
    ("closed form", "vae", closed_form_with_the_sign_of_the_kl_flipped),
    ("closed form", "vae", closed_form_with_sigma_for_sigma_squared),
    ("closed form", "vae", closed_form_with_two_permuted_parameters),
    ("gap", "vae", gap_with_the_sign_of_log_q_flipped),
    ("gap", "factors", affine_gap_with_the_sign_of_the_kl_flipped),
    ("gap", "factors", affine_gap_with_two_permuted_parameters),
    ("gap", "factors", affine_gap_with_sigma_for_sigma_squared),
]


@pytest.mark.parametrize("kind", ["mixture", "posterior", "vae", "factors"])
def test_an_honest_fit_passes_every_line(fits, kind):
    certificate = certify(*fits[kind])
    assert certificate.ok, str(certificate)
    assert all(np.isfinite(line.value) for line in certificate.lines)


@pytest.mark.parametrize(
    ("line", "kind", "sabotage"), SABOTAGES, ids=[f"{s.__name__}-{kind}" for _, kind, s in SABOTAGES]
)
def test_a_fault_fails_its_own_line_and_only_that_one(monkeypatch, fits, line, kind, sabotage):
    assert certify(*sabotage(monkeypatch, fits[kind])).failed == (line,)


def test_every_line_that_can_fail_is_sabotaged(fits):
    judged = {line.name for fit in fits.values() for line in certify(*fit).lines if line.ok is not None}
    assert judged == {line for line, _, _ in SABOTAGES}


def test_lines_that_inform_never_fail(fits):
    for program, run, table in fits.values():
        certificate = certify(program, run, table)
        assert certificate["modes"].ok is certificate["boundaries"].ok is None
    assert certify(*fits["vae"])["ascent"].ok is certify(*fits["vae"])["gradient"].ok is None


def test_what_is_inside_is_judged_where_a_probability_is_at_0():
    """A class without successes leaves EM at the boundary: the other numbers must be at their maximum."""
    x = np.array([[0, 1], [0, 1], [0, 0], [0, 1], [0, 0]])
    program, run, table = fitted(Spec(model={"x": Bernoulli(2)}), x, EM(restarts=1, lowering="eager"))
    assert run.status is Status.BOUNDARY
    honest = certify(program, run, table)
    assert honest.ok
    assert honest["gradient"].ok
    assert "1 at the edge" in honest["gradient"].text
    path = "generative.layers.x:probs.table"
    other = moved((program, run, table), path, lambda logits: logits + torch.tensor([0.0, 0.1]))
    assert certify(*other).failed == ("gradient",)
    farther = moved((program, run, table), path, lambda logits: logits - torch.tensor([9.0, 0.0]))
    assert certify(*farther).ok


def test_a_density_wrong_in_the_program_itself_fails_the_objective(fits):
    with square_root_of_the_scale():
        failed = {kind: certify(*fit).failed for kind, fit in fits.items()}
    assert all("objective" in lines for lines in failed.values()), failed


def test_a_line_that_cannot_be_computed_fails_and_the_fit_is_not_lost(monkeypatch, fits):
    def spoil(original, subject):
        raise np.linalg.LinAlgError("Matrix is not positive definite")

    broken(monkeypatch, evidence, "log_marginal", spoil)
    certificate = certify(*fits["mixture"])
    assert certificate.failed == ("objective",)
    assert "not positive definite" in certificate["objective"].text
