"""SVI: stochastic gradient ascent on the ELBO (F8–F11), in minibatches of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI, described
from ppl_gen.infer.ascent import WEIGHTS, Rows
from ppl_gen.infer.callbacks import Audience, Begun, Callback
from ppl_gen.infer.checkpoints import Keeper, Snapshot
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.noise import TURN
from ppl_gen.infer.progress import Progress
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import interruptible
from ppl_gen.infer.tables import start_tables
from ppl_gen.infer.training import Training
from ppl_gen.program.lowering import pyro_scope, threads_for
from ppl_gen.program.program import Program


def run_svi(
    program: Program,
    table: Table,
    algorithm: SVI,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    keeper: Keeper | None = None,
    resumed: Snapshot | None = None,
) -> Run:
    """Fit a program by SVI. The history holds each epoch's ELBO, summed over rows, as its steps saw it.

    Where parameters have priors, their log-density counts with the ELBO: the estimates maximise the sum.

    Args:
        program: the compiled model.
        table: its rows.
        algorithm: SVI's options.
        seed: of starts, orders and draws.
        progress: called after each epoch.
        callbacks: told of the run as it goes.
        keeper: stores snapshots of it.
        resumed: one that it goes on from, to the same bits.

    """
    devices = [program_device] if (program_device := program.device).type == "cuda" else []
    size = min(algorithm.batch_size, table.n_units)
    work = size * algorithm.particles * sum(p.numel() for p in program.parameters())
    audience = Audience(progress, callbacks, devices)
    with (
        TURN,
        pyro_scope(),
        threads_for(work),
        torch.random.fork_rng(devices=devices),
        interruptible() as interrupt,
    ):
        program.load_state_dict(start_tables(program, table, seed))
        data = data_of(program, table)
        _validate(program, {name: column[:size] for name, column in data.items()}, algorithm)
        training = Training(program, table, data, algorithm, seed, interrupt, resumed)
        audience.begin(Begun(described(algorithm), seed, len(training.history), algorithm.epochs))
        training.run(audience, keeper)
        run = training.concluded()
        audience.end(run)
    return replace(run, notes=(*run.notes, *audience.notes))


def data_of(program: Program, table: Table) -> Rows:
    """The rows as a run takes them: all columns, marks of the seen cells, and weights of mean 1."""
    data = program.tensors(table.arrays, table.holes)
    if table.weights is not None:
        weights = torch.tensor(table.weights * (table.n_units / table.total), dtype=program.dtype)
        data[WEIGHTS] = weights.to(program.device)
    return data


def _validate(program: Program, rows: Rows, algorithm: SVI) -> None:
    """One eager evaluation of the first batch with Pyro's own checks on; takes no noise from the run."""
    devices = [program.device] if program.device.type == "cuda" else []
    rows = {name: column for name, column in rows.items() if name != WEIGHTS}
    with pyro_scope(validate=True), torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            TraceableELBO(algorithm.particles).per_row(program.model, program.guide, rows)
        except (ValueError, RuntimeError) as error:
            raise FitError(f"Pyro refuses the model on the first batch: {error}") from error
