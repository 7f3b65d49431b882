"""certify: a finished run, its program and its rows, held against the formulas line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ppl_gen import reference
from ppl_gen.certify import bounds, edges, evidence, lines, louis, priors
from ppl_gen.certify.certificate import Certificate, Line
from ppl_gen.certify.evaluate import SecondOpinionError
from ppl_gen.certify.predictors import Array
from ppl_gen.certify.subject import Subject, first_rows, subject_of
from ppl_gen.data.moments import constant
from ppl_gen.data.stream import held
from ppl_gen.data.table import Table
from ppl_gen.infer import linear_gaussian
from ppl_gen.infer.identified import Identified
from ppl_gen.infer.newton import UNBOUNDED
from ppl_gen.infer.run import Run
from ppl_gen.program.layers import MLPLayer
from ppl_gen.program.program import Program

MOST_LEARNED = (
    200  # numbers up to which all second derivatives are taken; of more, those along a few directions
)
LOUIS_ROWS, FEWER_ROWS = (
    300,
    40,
)  # that Louis' identity is held on, with all of them or not: it holds row by row
BOUND_DRAWS = 10  # draws a row of the bound that the importance-weighted log p(x) is held against


def certify(program: Program, run: Run, table: Table, *, seed: int = 0) -> Certificate:
    """Hold a fit against the formulas, on at most 1 000 of its rows, in float64.

    Lines: `ascent` (F6), `objective` (F1, F9.7), `responsibilities` (F7.1; discrete latents only),
    `closed form` (F9.5; normal latents only), `gap` (F2, E1, E3), `prior` (where parameters have priors),
    `information` (Louis' identity; discrete latents only), `gradient`, `modes`, `boundaries`.

    Args:
        program: with the run's parameters loaded.
        run: how they were found.
        table: the rows they were fitted to.
        seed: of the rows drawn and of the guide's draws.

    A line that cannot be computed fails, and says why; nothing is raised, so that a fit is never lost.

    Example:
        >>> import numpy as np
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.files import read_spec
        >>> from ppl_gen.infer.algorithms import EM
        >>> from ppl_gen.infer.em import run_em
        >>> from ppl_gen.program.program import compile_spec
        >>> spec = read_spec("poisson_mixture")
        >>> table = read_table({"x": np.array([[0], [1], [1], [0], [9], [8], [9], [7]])}, spec)
        >>> program = compile_spec(spec, table.schema)
        >>> run = run_em(program, table, EM(restarts=2))
        >>> _ = program.load_state_dict(run.state)
        >>> certificate = certify(program, run, table)
        >>> certificate.ok, [line.name for line in certificate.lines if line.ok]
        (True, ['ascent', 'objective', 'responsibilities', 'gap', 'information', 'gradient'])

    """
    subject = replace(subject_of(program, held(table), seed), n_units=table.n_units)
    made = _exact_lines(subject, run, seed) if subject.exact else _sampled_lines(subject, seed)
    stepwise = (subject.exact or linear_gaussian.exact(program)) and _by_em(run)
    return Certificate(
        (
            _guarded("ascent", lambda: _ascent(program, run, stepwise, table.n_units)),
            *(_guarded(name, check) for name, check in made),
            *([_guarded("prior", lambda: _prior(subject))] if any(True for _ in program.priors) else []),
            _guarded("gradient", lambda: _gradient(subject, run, table, stepwise, seed)),
            lines.modes(run.modes, run.finished, run.collapsed),
            _guarded("boundaries", lambda: _boundaries(subject, run, seed)),
        )
    )


def _by_em(run: Run) -> bool:
    """Whether the history is one of log-likelihoods, iteration by iteration."""
    return run.algorithm == "EM"


def _guarded(name: str, check: Callable[[], Line]) -> Line:
    try:
        # Overflow of a fit that diverged is what the line is there to tell, not a warning beside it.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return check()
    except SecondOpinionError as error:
        return Line(name, None, float("nan"), None, str(error))
    except (ArithmeticError, ValueError, RuntimeError, np.linalg.LinAlgError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        return Line(name, False, float("nan"), None, f"could not be computed: {reason}")


def _prior(subject: Subject) -> Line:
    return lines.prior(evidence.log_prior(subject), priors.log_prior(subject.model))


def _ascent(program: Program, run: Run, stepwise: bool, n_units: int) -> Line:
    if not stepwise:
        return lines.net_rise(run.history)
    # A sum of N densities in float32 is good to a few units of its last digit.
    rounding = lines.ROUNDING if program.dtype == torch.float64 else 10 * torch.finfo(program.dtype).eps
    return lines.ascent(run.history, n_units, rounding, priors=any(True for _ in program.priors))


def _exact_lines(subject: Subject, run: Run, seed: int) -> Iterator[tuple[str, Callable[[], Line]]]:
    """Discrete latents, summed out: the posterior is exact."""
    yield "objective", lambda: _enumerated_objective(subject)
    if subject.program.enumerated:
        yield "responsibilities", lambda: _responsibilities(subject)
    yield "gap", lambda: _exact_gap(subject)
    yield "information", lambda: _information(subject, run, seed)


def _enumerated_objective(subject: Subject) -> Line:
    formula = reference.log_marginal(bounds.exact_table(subject))
    return lines.objective(evidence.log_marginal(subject), formula, "log p(x) by enumeration equals F1")


def _responsibilities(subject: Subject) -> Line:
    # F7.1 is applied to Pyro's own log-joint, which `objective` answers for: here the E-step alone is held.
    table = evidence.log_joint_table(subject)
    r = reference.responsibilities(table)
    pyro = evidence.responsibilities(subject)
    formula = {name: bounds.site_marginals(subject, r, site) for name, site in pyro.items()}
    return lines.responsibilities(pyro, formula, lines.tolerance(table))


def _exact_gap(subject: Subject) -> Line:
    table = bounds.exact_table(subject)
    bound = reference.lower_bound(table, evidence.posterior(subject))
    return lines.exact_gap(reference.log_marginal(table), bound)


def _unbounded(run: Run) -> list[str]:
    """What the fit noted of parameters that the likelihood no longer changes with."""
    return [note for note in run.notes if note.startswith(UNBOUNDED)]


def _information(subject: Subject, run: Run, seed: int) -> Line:
    if _unbounded(run):
        text = (
            "not judged: where the data do not bound a parameter, the likelihood bends by less than rounding"
        )
        return Line("information", None, float("nan"), None, text)
    if kinks := edges.kinked(subject.program):
        text = (
            f"not judged: a network of {kinks} has kinks, and the log-likelihood no second derivatives there"
        )
        return Line("information", None, float("nan"), None, text)
    learned = sum(p.numel() for p in subject.program.generative.parameters())
    small = learned <= MOST_LEARNED
    if not small and any(isinstance(part, MLPLayer) for part in subject.program.modules()):
        text = f"not computed: a network, and more than {MOST_LEARNED} learned numbers, here {learned}"
        return Line("information", None, float("nan"), None, text)
    few = first_rows(subject, LOUIS_ROWS if small else FEWER_ROWS)
    phi, size, matrix = _bends(few, small=small)
    if not phi.count:
        return Line("information", None, float("nan"), None, "no number is free to move")
    found = louis.directions(size / few.table.n_units, seed, louis.DIRECTIONS if small else 1)
    exact = np.array([louis.along(few, phi, direction) for direction in found])
    if matrix is None:
        curvature = evidence.curvature_along(few, found)
    else:
        curvature = np.einsum("vp,pq,vq->v", found, matrix, found)
    if not np.isfinite(curvature).all() and (columns := edges.far_units(few)):
        text = f"not judged: second derivatives overflow in the units of {', '.join(columns)}"
        return Line("information", None, float("nan"), None, text)
    return lines.information(curvature, exact[:, 0], exact[:, 1], louis.rounding(few))


def _bends(subject: Subject, *, small: bool) -> tuple[Identified, Array, Array | None]:
    """The predictors that move, how much the likelihood bends along each, and all second derivatives if few."""
    if not small:
        return *evidence.squared_scores(subject), None
    phi, matrix = evidence.information(subject)
    return phi, np.abs(np.diag(matrix)), matrix


def _sampled_lines(subject: Subject, seed: int) -> Iterator[tuple[str, Callable[[], Line]]]:
    """Continuous latents, drawn from the guide."""
    yield "objective", lambda: _sampled_objective(subject, seed)
    if subject.mean_field:
        yield "closed form", lambda: _closed_form(subject, seed)
    yield "gap", lambda: _sampled_gap(subject, seed)


def _sampled_objective(subject: Subject, seed: int) -> Line:
    pyro, drawn = evidence.sampled_bound(subject, seed)
    what = "the sampled ELBO equals log p(x|z) + log p(z) − log q(z|x) (F9.7) on one draw a row"
    return lines.objective(pyro, bounds.sampled_bound(subject, drawn), what)


def _closed_form(subject: Subject, seed: int) -> Line:
    pyro, drawn = evidence.closed_bound(subject, seed)
    kl = sum(bounds.kl_terms(subject, drawn).values(), np.zeros(()))
    return lines.closed_form(pyro, float((bounds.reconstruction(subject, drawn) - kl).sum()))


def _sampled_gap(subject: Subject, seed: int) -> Line:
    decoder = bounds.affine_decoder(subject)
    if decoder is not None and not subject.program.schema.holes:  # E1 is of whole rows
        off = bounds.decoder_error(subject, decoder, evidence.guide_draw(subject, seed))
        return lines.affine_gap(*bounds.affine_gap(subject, decoder), off)
    log_p, error = evidence.importance_weighted(subject, seed)
    # Draws of their own: on the importance weights' draws the inequality would hold by itself.
    draws = [
        bounds.sampled_bound(subject, evidence.guide_draw(subject, seed + 1 + s)) for s in range(BOUND_DRAWS)
    ]
    bound, spread = np.mean(draws, axis=0), np.std(draws, axis=0, ddof=1)
    return lines.estimated_gap(log_p, error, bound, spread / np.sqrt(BOUND_DRAWS))


def _gradient(subject: Subject, run: Run, table: Table, stepwise: bool, seed: int) -> Line:
    outside = 0
    if subject.standard is not None:
        gradient, outside = edges.inside(subject, evidence.gradient_in_standard_units(subject, table))
        norm = float(np.sqrt(sum(float((own**2).sum()) for own in gradient.values())))
    elif stepwise:  # every latent is linear-Gaussian: log p(x) itself
        norm = edges.unit_free_norm(subject, evidence.linear_gaussian_gradient(subject, table))
    else:
        norm = edges.unit_free_norm(subject, evidence.mean_gradient(subject, held(table), seed))
    # A constant column has no maximum of its likelihood: its variance is held at a floor.
    fixed = any(
        constant(table.arrays[name]).any()
        for name in table.schema.roles.observed
        if subject.program.spec.nodes[name].support == "real"
    )
    # At the edge of its space a number need not be where the objective is level: the others are judged.
    judged = stepwise and run.status.converged and not fixed
    if judged and norm > lines.GRADIENT and (kinks := edges.kinked(subject.program)):
        text = (
            f"not judged: a network of {kinks} has kinks, and a maximum on one of them a gradient beside it"
        )
        return Line("gradient", None, norm, None, text)
    return lines.gradient(norm, judged, stepwise or subject.exact, outside)


def _boundaries(subject: Subject, run: Run, seed: int) -> Line:
    drawn = None if subject.exact else evidence.guide_draw(subject, seed)
    return lines.boundaries([*edges.all_found(subject, drawn), *_unbounded(run)])
