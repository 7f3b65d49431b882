"""fit: from a declaration and data to a Fit."""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ppl_gen.certify.certify import certify
from ppl_gen.data.distinct import collapsed, collapsed_stream
from ppl_gen.data.reading import read_table
from ppl_gen.data.stream import StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import FitError
from ppl_gen.infer import linear_gaussian
from ppl_gen.infer.algorithms import EM, SVI, Algorithm, StepwiseEM, described
from ppl_gen.infer.callbacks import Callback, check_callbacks
from ppl_gen.infer.checkpoints import Checkpoints
from ppl_gen.infer.em import run_em, start_given
from ppl_gen.infer.linear_gaussian_run import run_linear_gaussian
from ppl_gen.infer.noise import in_turn
from ppl_gen.infer.progress import Progress, progress_bar
from ppl_gen.infer.route import em_obstacle, route
from ppl_gen.infer.run import Run
from ppl_gen.infer.stepwise import run_stepwise, stepwise_obstacle
from ppl_gen.infer.summary import bound_and_likelihood
from ppl_gen.infer.svi import run_svi
from ppl_gen.precautions import beyond_squares, check_arguments, coarse_columns, enough_rows, warn
from ppl_gen.program.program import Program, compile_spec
from ppl_gen.results.checkpoint_identity import open_folder
from ppl_gen.results.fit import Fit

log = logging.getLogger("ppl_gen")

VERSIONED = ("ppl_gen", "torch", "pyro-ppl", "numpy")


@in_turn
def fit(
    spec: Spec | str | Path,
    data: Any,
    algorithm: Algorithm | None = None,
    *,
    weights: Any = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoints | None = None,
) -> Fit:
    """Fit a declared model: EM through enumeration, or SVI on the ELBO.

    Args:
        spec: a Spec, the path of a YAML file, or the name of a shipped model.
        data: {"x": array}, one array for the only leaf, a DataFrame, or the path of a CSV, Parquet or .npy
            file, of a folder or pattern of them; `Rows(…)` of such a path is never held as a whole. What the
            data have is observed, what they lack is latent (rule 16).
        algorithm: EM(…), StepwiseEM(…) or SVI(…); left out, the route of rule 21, which is logged with its reason.
        weights: how often each row counts, N numbers from 0, or the name of a column: frequencies and
            importance weights alike. The n of BIC is their sum. Default: once.
        seed: of starts, minibatches and draws; kept in the Fit.
        dtype: default float64 for EM, float32 for SVI where a latent is continuous.
        device: default the CPU.
        progress: called after each epoch of SVI or StepwiseEM with epochs done, epochs in all, and the epoch's
            ELBO or log-likelihood. Left out, a bar is drawn where stderr is a terminal, and nothing elsewhere.
        callbacks: objects that are told of a run of SVI as it goes; see `Callback`.
        checkpoint: where and how often a run of SVI is kept on disk, for `resume` to go on from.

    Returns:
        The Fit, its certificate included. Ctrl-C ends the run after the step at hand, and the Fit so far is
        returned with status INTERRUPTED.

    Raises:
        SpecError: the declaration is wrong, or cannot be compiled.
        DataError: the data do not fit it.
        FitError: the algorithm cannot fit this model; the message says why.

    Example:
        >>> import numpy as np
        >>> from ppl_gen import By, Categorical, Normal, Spec
        >>> random = np.random.default_rng(0)
        >>> x = np.concatenate([random.normal(9, 1, (60, 1)), random.normal(0, 1, (40, 1))])
        >>> result = fit(Spec(model=dict(z=Categorical(2), x=Normal(1, loc=By("z"), scale=By("z")))), {"x": x})
        >>> result.converged, result.parameters["x"]["loc"].round(0).T
        (True, array([[9., 0.]]))
    """
    check_arguments(seed, dtype, device)
    seed = int(seed)
    declared = spec if isinstance(spec, Spec) else read_spec(spec)
    table = read_table(data, declared, weights=weights)
    warn(*declared.warnings, *table.warnings)
    program = compile_spec(declared, table.schema, seed=seed, dtype=dtype, device=device)
    algorithm, reason = choose(program, algorithm)
    _told_and_kept(algorithm, callbacks, checkpoint)
    if dtype is None and isinstance(algorithm, EM) and program.dtype != torch.float64:
        program = compile_spec(declared, table.schema, seed=seed, dtype=torch.float64, device=device)
    warn(*coarse_columns(program, table, algorithm))
    roles = table.schema.roles
    log.info("roles: observed %s; latent %s", ", ".join(roles.observed), ", ".join(roles.latent) or "none")
    log.info("route: %s", reason)
    enough_rows(program, table)
    if isinstance(algorithm, EM) and linear_gaussian.exact(program):
        given = start_given(program, algorithm.init)
        run = run_linear_gaussian(program, table, algorithm, given)
    elif isinstance(algorithm, EM):
        run = run_em(program, _once_each(table), algorithm, seed=seed)
    else:
        objective = "log-likelihood" if isinstance(algorithm, StepwiseEM) else "ELBO"
        with progress_bar(objective) if progress is None else nullcontext(progress) as report:
            if isinstance(algorithm, StepwiseEM):
                run = run_stepwise(program, table, algorithm, seed=seed, progress=report)
            else:
                keeper = None
                if checkpoint is not None:
                    keeper = open_folder(
                        checkpoint,
                        program,
                        table,
                        algorithm,
                        seed=seed,
                        reason=reason,
                        data=data,
                        weights=weights,
                    )
                run = run_svi(
                    program, table, algorithm, seed=seed, progress=report, callbacks=callbacks, keeper=keeper
                )
    return conclude(program, table, replace(run, notes=(reason, *run.notes)), algorithm, seed)


def choose(program: Program, algorithm: Algorithm | None) -> tuple[Algorithm, str]:
    """The algorithm to run and the reason; one given by hand is taken where it can be.

    Raises FitError where EM was asked for and cannot be run, with the reason.
    """
    routed, reason = route(program)
    if algorithm is None:
        return routed, reason
    if isinstance(algorithm, SVI):
        return algorithm, "SVI: as asked"
    if isinstance(algorithm, StepwiseEM):
        obstacle = stepwise_obstacle(program)
        if obstacle is not None:
            raise FitError(f"StepwiseEM cannot fit this model: {obstacle}. Use EM(…) or SVI(…)")
        return algorithm, "StepwiseEM: as asked"
    if not isinstance(algorithm, EM):
        raise FitError(f"algorithm must be EM(…), StepwiseEM(…) or SVI(…), not {algorithm!r}")
    other = linear_gaussian.obstacle(program)
    obstacle = em_obstacle(program) if other else None
    if obstacle is not None:
        obstacle += f", and {other}" if program.continuous else ""
        raise FitError(f"EM cannot fit this model: {obstacle}. Leave the algorithm out, or use SVI(…)")
    return algorithm, "EM: as asked"


def conclude(program: Program, table: Table, run: Run, algorithm: Algorithm, seed: int) -> Fit:
    """Load a run's parameters, sum up, certify."""
    program.load_state_dict(run.state)
    if not run.status.usable:
        warn(run.status.value, *beyond_squares(table))
    if isinstance(algorithm, EM | StepwiseEM) and run.history:  # the exact posterior: the gap of F2 is 0
        elbo = log_likelihood = run.history[-1] - float(program.log_prior().detach())
    else:
        elbo, log_likelihood, notes = bound_and_likelihood(program, run.state, table, seed)
        warn(*notes)
        run = replace(run, notes=(*run.notes, *notes))
    return Fit(
        program=program,
        run=run,
        algorithm=described(algorithm),
        seed=seed,
        n_units=int(table.total) if table.total.is_integer() else table.total,
        log_likelihood=log_likelihood,
        elbo=elbo,
        certificate=certify(program, run, table, seed=seed),
        versions={"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        data=None if isinstance(table, StreamedTable) else table,
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # on the path, but not installed
        return "unknown"


def _told_and_kept(algorithm: Algorithm, callbacks: Sequence[Callback], checkpoint: Any) -> None:
    """Find out before any work whether callbacks and checkpoints are what they should be."""
    if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
        raise FitError(f"checkpoint must be Checkpoints(…), not {checkpoint!r}")
    check_callbacks(callbacks)
    if not isinstance(algorithm, SVI) and (checkpoint is not None or callbacks):
        what = "checkpoint" if checkpoint is not None else "callbacks"
        raise FitError(f"{what}= goes with SVI(…), and this fit is one of {type(algorithm).__name__}")


def _once_each(table: Table) -> Table:
    """Equal rows of discrete data once, with their number as weight; other tables as they are."""
    if not isinstance(table, StreamedTable):
        fewer = collapsed(table)
        return table if fewer is None else fewer[0]
    held = collapsed_stream(table)
    if held is None:
        return table
    log.info("%d distinct rows stand for the %d streamed ones", held.n_units, table.n_units)
    return held
