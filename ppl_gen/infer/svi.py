"""SVI: stochastic gradient ascent on the ELBO (F8–F11), in minibatches of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ppl_gen.data.stream import StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI, described
from ppl_gen.infer.ascent_step import WEIGHTS, Rows
from ppl_gen.infer.callbacks import Audience, Begun, Callback
from ppl_gen.infer.checkpoints import Keeper, Snapshot
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.feeding import Feed, Kept, Streamed, tensors_of
from ppl_gen.infer.noise import TURN
from ppl_gen.infer.pair import Counted, Declared, Pair
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
        table: its rows; those of a streamed table stay in their files.
        algorithm: SVI's options.
        seed: of starts, orders and draws.
        progress: called after each epoch.
        callbacks: told of the run as it goes.
        keeper: stores snapshots of it.
        resumed: one that it goes on from, to the same bits.

    """

    def begin() -> Rows | Feed:
        program.load_state_dict(start_tables(program, table, seed))
        if isinstance(table, StreamedTable):
            return Streamed(program, table)
        return data_of(program, table)

    return train(
        Declared(program),
        table,
        begin,
        algorithm,
        seed=seed,
        audience=(progress, callbacks),
        keeper=keeper,
        resumed=resumed,
    )


def train(
    pair: Pair,
    table: Counted,
    begin: Callable[[], Rows | Feed],
    algorithm: SVI,
    *,
    seed: int = 0,
    audience: tuple[Progress | None, Sequence[Callback]] = (None, ()),
    keeper: Keeper | None = None,
    resumed: Snapshot | None = None,
) -> Run:
    """`run_svi` of any pair.

    Args:
        pair: what is trained; its parameters stay where they are.
        table: how many rows there are, and what they count.
        begin: called once Pyro's store and torch's noise are the run's own; gives the rows.
        algorithm: SVI's options.
        seed: of orders and draws.
        audience: progress and callbacks.
        keeper: as of `run_svi`.
        resumed: as of `run_svi`.

    """
    devices = [pair.device] if pair.device.type == "cuda" else []
    size = min(algorithm.batch_size, table.n_units)
    work = size * algorithm.particles * sum(p.numel() for p in pair.parameters().values())
    told = Audience(*audience, devices)
    with (
        TURN,
        pyro_scope(),
        threads_for(work),
        torch.random.fork_rng(devices=devices),
        interruptible() as interrupt,
    ):
        data = begin()
        feed = Kept(data) if isinstance(data, dict) else data
        _validate(pair, feed.first(size), algorithm)
        training = Training(pair, table, feed, algorithm, seed, interrupt, resumed)
        told.begin(Begun(described(algorithm), seed, len(training.history), algorithm.epochs))
        training.run(told, keeper)
        run = training.concluded()
        told.end(run)
    return replace(run, notes=(*run.notes, *told.notes))


def data_of(program: Program, table: Table) -> Rows:
    """The rows as a run takes them: all columns, marks of the seen cells, and weights of mean 1."""
    return tensors_of(program, table, table.holes, table.n_units / table.total)


def _validate(pair: Pair, rows: Rows, algorithm: SVI) -> None:
    """One eager evaluation of the first batch with Pyro's own checks on; takes no noise from the run."""
    devices = [pair.device] if pair.device.type == "cuda" else []
    rows = {name: column for name, column in rows.items() if name != WEIGHTS}
    with pyro_scope(validate=True), torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            with pair.at(pair.parameters() | pair.buffers()) as halves:
                TraceableELBO(algorithm.particles).per_row(*halves, rows)
        except (ValueError, RuntimeError) as error:
            raise FitError(f"Pyro refuses the model on the first batch: {error}") from error
