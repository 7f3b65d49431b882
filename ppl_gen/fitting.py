"""fit: from a declaration and data to a Fit."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppl_gen.certify.certify import certify
from ppl_gen.data.distinct import collapsed, collapsed_stream
from ppl_gen.data.reading import read_table
from ppl_gen.data.stream import StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.declare.files import read_spec
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError, FitError
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
from ppl_gen.program.program import Program, compile_spec
from ppl_gen.results.checkpoint_identity import open_folder
from ppl_gen.results.fit import Fit

log = logging.getLogger("ppl_gen")

LARGEST_SQUARED = 1e150  # of numbers whose squares can still be added up
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
    _check_arguments(seed, dtype, device)
    seed = int(seed)
    declared = spec if isinstance(spec, Spec) else read_spec(spec)
    table = read_table(data, declared, weights=weights)
    _warn(*declared.warnings, *table.warnings)
    program = compile_spec(declared, table.schema, seed=seed, dtype=dtype, device=device)
    algorithm, reason = choose(program, algorithm)
    _told_and_kept(algorithm, callbacks, checkpoint)
    if dtype is None and isinstance(algorithm, EM) and program.dtype != torch.float64:
        program = compile_spec(declared, table.schema, seed=seed, dtype=torch.float64, device=device)
    _warn(*_coarse_columns(program, table))
    roles = table.schema.roles
    log.info("roles: observed %s; latent %s", ", ".join(roles.observed), ", ".join(roles.latent) or "none")
    log.info("route: %s", reason)
    _enough_rows(program, table)
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
                if isinstance(table, StreamedTable):  # SVI picks rows one by one, from memory
                    table = table.loaded()
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
        _warn(run.status.value, *_beyond_squares(table))
    if isinstance(algorithm, EM | StepwiseEM) and run.history:  # the exact posterior: the gap of F2 is 0
        elbo = log_likelihood = run.history[-1] - float(program.log_prior().detach())
    else:
        elbo, log_likelihood = bound_and_likelihood(program, run.state, table, seed)
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


def _check_arguments(seed: Any, dtype: Any, device: Any) -> None:
    whole = isinstance(seed, Integral) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**63:
        raise FitError(f"seed must be a whole number from 0, not {seed!r}")
    if dtype not in (None, torch.float32, torch.float64):
        raise FitError(f"dtype must be torch.float32 or torch.float64, not {dtype!r}")
    try:
        torch.zeros(1, device=device).add(1).item()
    except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
        raise FitError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None


def _told_and_kept(algorithm: Algorithm, callbacks: Sequence[Callback], checkpoint: Any) -> None:
    """Find out before any work whether callbacks and checkpoints are what they should be."""
    if checkpoint is not None and not isinstance(checkpoint, Checkpoints):
        raise FitError(f"checkpoint must be Checkpoints(…), not {checkpoint!r}")
    check_callbacks(callbacks)
    if not isinstance(algorithm, SVI) and (checkpoint is not None or callbacks):
        what = "checkpoint" if checkpoint is not None else "callbacks"
        raise FitError(f"{what}= goes with SVI(…), and this fit is one of {type(algorithm).__name__}")


def _coarse_columns(program: Program, table: Table) -> list[str]:
    """Warnings of real columns whose values float32, or SVI's steps, cannot resolve."""
    found, schema = [], table.schema
    stepwise = program.dtype == torch.float32 or not linear_gaussian.exact(program)
    stepwise = stepwise and em_obstacle(program) is not None
    for name in schema.roles.observed:
        if program.spec.nodes[name].support != "real":
            continue
        moments = zip(schema.columns[name], schema.centre[name], schema.spread[name], strict=True)
        for position, (column, mean, sd) in enumerate(moments):
            cells = table.arrays[name][:, position]
            if abs(mean) > 1e5 * sd and np.array_equal(cells, cells.astype(np.float32), equal_nan=True):
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) seems to have been stored in "
                    "float32, which keeps next to none of its differences: subtract the mean before storing it"
                )
            elif program.dtype == torch.float32 and abs(mean) > 1e4 * sd:
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) loses digits in float32: "
                    "subtract its mean, or use dtype=torch.float64"
                )
            elif stepwise and not (abs(mean) <= 1e3 * max(sd, 1.0) and 1e-4 <= sd <= 1e2):
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) is far from unit scale, and SVI "
                    "steps by the learning rate whatever the units: centre and scale it"
                )
    return found


def _beyond_squares(table: Table) -> list[str]:
    """Warnings of columns whose squares are beyond what float64 holds, under a scale that is not theirs."""
    found, schema = [], table.schema
    for name in schema.roles.observed:
        columns = schema.columns.get(name, ())
        moments = zip(columns, schema.centre.get(name, ()), schema.spread.get(name, ()), strict=False)
        for column, mean, sd in moments:
            if max(abs(mean), sd) > LARGEST_SQUARED:
                found.append(
                    f"column {column!r} of {name!r} (mean {mean:.4g}, sd {sd:.4g}) has squares beyond the range of "
                    "floating-point numbers: divide it by a power of ten"
                )
    return found


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


def _enough_rows(program: Program, table: Table) -> None:
    for name in program.enumerated:
        classes = program.generative.draws[name].sizes.k or 2
        if max(table.n_units, table.total) < classes:
            raise DataError(
                f"{table.n_units} row(s) cannot tell {classes} classes of '{name}' apart; "
                f"give at least {classes} rows, or fewer classes"
            )


def _warn(*messages: str) -> None:
    for message in messages:
        warnings.warn(message, stacklevel=4)
