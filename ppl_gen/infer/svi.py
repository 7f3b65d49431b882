"""SVI: stochastic gradient ascent on the ELBO (F8–F11), in minibatches of rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.elbo import TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.optimisers import Layout, Memory, TorchOptimiser, adam, adam_memory
from ppl_gen.infer.ordering import by_decreasing_weight, latent_statistics
from ppl_gen.infer.progress import Progress
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Interrupt, Status, interruptible
from ppl_gen.infer.tables import start_tables
from ppl_gen.program.lowering import How, Lowered, pyro_scope, threads_for
from ppl_gen.program.program import Program

PROBE_STEPS = 50  # traced steps timed before a compile is considered
COMPILE_SECONDS = 20.0  # what a cold compile costs
COMPILE_GAIN = 0.5  # the share of a traced step that compiling it saves, at least


def gradient_step(
    program: Program, layout: Layout, particles: int, n_units: int
) -> Callable[..., tuple[Tensor, Tensor]]:
    """(flat parameters, buffers, rows) → the gradient of −mean LB (F10), and Σ_d LB_d of the batch.

    The log-density of priors is spread over the N rows: each adds 1/N of it.
    """
    elbo, has_priors = TraceableELBO(particles), any(True for _ in program.priors)

    def step(flat: Tensor, buffers: State, rows: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def loss(flat: Tensor) -> tuple[Tensor, Tensor]:
            state = layout.unflatten(flat) | buffers
            model, guide = functional_pair(program, state)
            bounds = elbo.per_row(model, guide, rows)
            if has_priors:
                bounds = bounds + torch.func.functional_call(program, state, ("log_prior",)) / n_units
            return -bounds.mean(), bounds.sum()

        gradient, bound = torch.func.grad(loss, has_aux=True)(flat)
        return gradient, bound

    return step


def ascent_step(program: Program, layout: Layout, particles: int, n_units: int) -> Callable[..., Any]:
    """One step of Adam: (flat, memory, rate, buffers, data, index) → (flat, memory, Σ_d LB_d of the batch).

    A step whose bound or gradient is not finite moves nothing.
    """
    gradient_of = gradient_step(program, layout, particles, n_units)

    def step(
        flat: Tensor, memory: Memory, rate: Tensor, buffers: State, data: dict[str, Tensor], index: Tensor
    ) -> tuple[Tensor, Memory, Tensor]:
        rows = {name: column.index_select(0, index) for name, column in data.items()}
        gradient, bound = gradient_of(flat, buffers, rows)
        moved, remembered = adam(flat, gradient, memory, rate)
        sound = torch.isfinite(bound) & torch.isfinite(gradient.sum())
        kept = {slot: torch.where(sound, new, memory[slot]) for slot, new in remembered.items()}
        return torch.where(sound, moved, flat), kept, bound

    return step


class Ascent:
    """The lowered step of one run, with the optimiser's state.

    With `lowering="auto"` the traced step is timed, and compiled once that repays itself in what is left of
    the run. A ragged last batch runs traced: compiling for one step an epoch never repays.
    """

    def __init__(self, program: Program, algorithm: SVI, data: dict[str, Tensor], planned: int) -> None:
        self.algorithm, self.data, self.planned = algorithm, data, planned
        parameters = {path: value.detach().clone() for path, value in program.named_parameters()}
        if not parameters:
            raise FitError("the model has no free parameter: there is nothing to fit")
        self.buffers = {path: value.detach().clone() for path, value in program.named_buffers()}
        self.layout = Layout(parameters)
        self.flat = self.layout.flatten(parameters)
        self.rate = torch.tensor(algorithm.learning_rate, dtype=self.flat.dtype, device=self.flat.device)
        n_units = len(next(iter(data.values())))
        self.own_adam = algorithm.optimizer == "adam"
        if self.own_adam:
            self.memory = adam_memory(self.flat)
            step = ascent_step(program, self.layout, algorithm.particles, n_units)
        else:
            self.torch_optimiser = TorchOptimiser(algorithm, self.layout, self.flat)
            step = gradient_step(program, self.layout, algorithm.particles, n_units)
        how: How = "traced" if algorithm.lowering == "auto" else algorithm.lowering  # type: ignore[assignment]
        self.step, self.how = Lowered(step, how), how
        self.ragged = Lowered(step, "traced") if how == "compiled" else self.step
        self.taken, self.began = 0, time.monotonic()

    def advance(self, index: Tensor, full: bool) -> Tensor:
        """One step on the rows of a minibatch; Σ_d LB_d of it at the parameters before the step."""
        run = self.step if full else self.ragged
        if self.own_adam:
            self.flat, self.memory, bound = run(
                self.flat, self.memory, self.rate, self.buffers, self.data, index
            )
        else:
            rows = {name: column.index_select(0, index) for name, column in self.data.items()}
            gradient, bound = run(self.flat, self.buffers, rows)
            if bool(torch.isfinite(bound) & torch.isfinite(gradient.sum())):
                self.flat = self.torch_optimiser(gradient)
        self._consider_compiling()
        return bound

    def state(self) -> State:
        """Parameters and buffers."""
        return self.layout.unflatten(self.flat) | self.buffers

    def _consider_compiling(self) -> None:
        self.taken += 1
        if self.taken == 2:  # the first one traces
            self.began = time.monotonic()
        if self.algorithm.lowering != "auto" or self.taken != PROBE_STEPS + 2:
            return
        saved = (time.monotonic() - self.began) / PROBE_STEPS * COMPILE_GAIN * (self.planned - self.taken)
        if saved > COMPILE_SECONDS:
            self.ragged, self.step, self.how = self.step, Lowered(self.step.step, "compiled"), "compiled"


def run_svi(
    program: Program, table: Table, algorithm: SVI, *, seed: int = 0, progress: Progress | None = None
) -> Run:
    """Fit a program by SVI. The history holds each epoch's ELBO, summed over rows, as its steps saw it.

    Where parameters have priors, their log-density counts with the ELBO: the estimates maximise the sum.
    """
    data = program.tensors(table.arrays)
    state = start_tables(program, table, seed)
    program.load_state_dict(state)
    n, size = table.n_units, min(algorithm.batch_size, table.n_units)
    devices = [program_device] if (program_device := program.device).type == "cuda" else []
    work = size * algorithm.particles * sum(p.numel() for p in program.parameters())
    history: list[float] = []
    with (
        pyro_scope(),
        threads_for(work),
        torch.random.fork_rng(devices=devices),
        interruptible() as interrupt,
    ):
        torch.manual_seed(seed)
        _validate(program, {name: column[:size] for name, column in data.items()}, algorithm)
        ascent = Ascent(program, algorithm, data, algorithm.epochs * math.ceil(n / size))
        status = Status.EPOCHS_DONE
        for epoch in range(algorithm.epochs):
            good = ascent.state()
            bounds = list(_epoch(ascent, n, size, seed + epoch, interrupt))
            total = float(torch.stack(bounds).sum()) if bounds else math.nan
            if bounds and not math.isfinite(total):
                status, last = Status.DIVERGED, good if epoch else state
                return Run(last, tuple(history), status, lowering=ascent.how, algorithm="SVI")
            if len(bounds) == math.ceil(n / size):
                history.append(total)
            if interrupt:
                status = Status.INTERRUPTED
                break
            if progress is not None:
                progress(epoch + 1, algorithm.epochs, total)
        final = {path: value.detach().clone() for path, value in ascent.state().items()}
        if not program.continuous:
            final, _ = by_decreasing_weight(program, final, latent_statistics(program, final, table))
    return Run(final, tuple(history), status, lowering=ascent.step.executed, algorithm="SVI")


def _epoch(ascent: Ascent, n: int, size: int, seed: int, interrupt: Interrupt) -> Iterator[Tensor]:
    """One pass over the rows in a shuffled order, drawn outside the steps' noise stream."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(ascent.flat.device)
    for start in range(0, n, size):
        if interrupt:
            return
        index = order[start : start + size]
        yield ascent.advance(index, full=len(index) == size)


def _validate(program: Program, rows: dict[str, Tensor], algorithm: SVI) -> None:
    """One eager evaluation of the first batch with Pyro's own checks on; takes no noise from the run."""
    devices = [program.device] if program.device.type == "cuda" else []
    with pyro_scope(validate=True), torch.no_grad(), torch.random.fork_rng(devices=devices):
        try:
            TraceableELBO(algorithm.particles).per_row(program.model, program.guide, rows)
        except (ValueError, RuntimeError) as error:
            raise FitError(f"Pyro refuses the model on the first batch: {error}") from error
