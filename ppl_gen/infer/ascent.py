"""One lowered step of stochastic gradient ascent, and the optimiser's memory from step to step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from copy import deepcopy
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.ascent_step import (
    Blocks,
    Knobs,
    Rows,
    all_finite,
    ascent_step,
    gradient_step,
    picked,
    steps_together,
)
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.optimisers import (
    Layout,
    Schedule,
    TorchOptimiser,
    adam_memory,
    joined,
)
from ppl_gen.infer.pair import Pair, as_pair
from ppl_gen.program.lowering import LOWERINGS, How, Lowered
from ppl_gen.program.program import Program

log = logging.getLogger("ppl_gen")

PROBED = 12  # traced steps by whose median a compile is decided
COMPILE_SECONDS = 20.0  # what a cold compile costs
COMPILE_GAIN = 0.5  # the share of a traced step that compiling it saves, at least
TOGETHER = range(4, 9)  # steps of one call
TINY_SECONDS = 1e-3  # of a traced step, up to which several are taken together
TOGETHER_GAIN = 5e-5  # seconds a step that this saves


class Ascent:
    """The lowered step of one run, with the optimiser's state.

    With `lowering="auto"` the first steps are traced and timed, and those after them compiled where that repays
    itself in what is left of the run. A ragged last batch runs traced: one step an epoch never repays a compile.

    Attributes:
        together: full minibatches that one call of `advance_together` takes, 1 where that is not for this run. A
            run that is being timed begins with 1.

    Args:
        program: what is trained.
        algorithm: SVI's options.
        data: the rows that minibatches are picked from where a step is given no others.
        planned: steps of the run.
        n_units: rows of an epoch; default those of `data`.

    """

    def __init__(
        self, program: Program | Pair, algorithm: SVI, data: Rows, planned: int, n_units: int | None = None
    ) -> None:
        pair = as_pair(program)
        self.algorithm, self.data, self.planned = algorithm, data, planned
        parameters = pair.parameters()
        if not parameters:
            raise FitError("the model has no free parameter: there is nothing to fit")
        dtype = next(iter(parameters.values())).dtype
        if algorithm.autocast and dtype is not torch.float32:
            raise FitError(f"SVI: autocast is for float32, not {str(dtype).removeprefix('torch.')}")
        if algorithm.lowering == "captured" and pair.device.type != "cuda":
            raise FitError(
                f"SVI: lowering='captured' is for CUDA devices, and the model is on {pair.device}; choose "
                f"{', '.join(LOWERINGS)}"
            )
        self.buffers = pair.buffers()
        self.layout = Layout(parameters)
        self.centring = pair.centring
        self.blocks = self.layout.blocks(self.layout.flatten(self.centring.inside(parameters)))
        self.knobs: Knobs = {"rate": self.blocks[0].new_tensor(algorithm.learning_rate)}
        if algorithm.beta != 1 or algorithm.warm_up:
            self.knobs["beta"] = self.blocks[0].new_tensor(algorithm.beta)
        least = pair.least()
        if least:
            nowhere = {path: torch.full_like(value, -math.inf) for path, value in parameters.items()}
            self.knobs["least"] = self.layout.blocks(self.layout.flatten(nowhere | least))
        self.n_units = n_units or len(next(iter(data.values())))
        self.own_adam = algorithm.optimizer == "adam"
        self.slowed = 1.0  # what the learning rate counts, after steps that were not finite
        self.begin(())
        stepping = ascent_step if self.own_adam else gradient_step
        step: Callable[..., Any] = stepping(pair, self.layout, algorithm, self.n_units)
        how = cast(How, algorithm.lowering)
        self.step = Lowered(step, how)
        self.ragged = Lowered(step, "traced") if how in ("compiled", "captured") else self.step
        self.together = 1
        if how in ("compiled", "captured"):
            self._take_together(algorithm.steps_per_execution or 1)
        self.taken, self.ended = 0, math.nan
        self.intervals: list[float] = []  # seconds from one step's end to the next

    def begin(self, history: Iterable[float]) -> None:
        """The optimiser and the schedule anew; the schedule is told of the epochs so far, by their ELBOs."""
        if self.own_adam:
            self.memory = adam_memory(self.blocks)
            self.schedule = Schedule(self.algorithm)
        else:
            self.torch_optimiser = TorchOptimiser(self.algorithm, self.layout, self.blocks)
            self.schedule = Schedule(self.algorithm, self.torch_optimiser.optimiser)
        for elbo in history:
            self.schedule.step(elbo)
        self.knobs["rate"].fill_(self.rate)

    def advance(self, index: Tensor, full: bool, data: Rows | None = None) -> Tensor:
        """One step on the rows of a minibatch; Σ_d w_d LB_d of it at the parameters before the step.

        Args:
            index: which rows.
            full: whether they are as many as a minibatch has.
            data: what they are rows of; default the run's.

        NaN where the bound or the gradient is not finite, or a matrix was not what a decomposition takes: nothing
        has moved then.
        """
        run, means = self.step if full else self.ragged, self.centring.means
        data = self.data if data is None else data
        try:
            if self.own_adam:
                self.blocks, self.memory, bound = run(
                    self.blocks, self.memory, self.knobs, self.buffers, data, index, means
                )
            else:
                gradient, bound = run(self.blocks, self.buffers, picked(data, index), self.knobs, means)
                if bool(torch.isfinite(bound) & all_finite(gradient)):
                    self._move(gradient)
                else:
                    bound = bound.new_full((), math.nan)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return self.blocks[0].new_full((), math.nan)
        self._probe()
        return bound

    def advance_together(self, index: Tensor, data: Rows, shares: list[float]) -> Tensor:
        """A step on each of `together` full minibatches; their bounds (together,), as `advance` gives them.

        Args:
            index: which rows, (together, B).
            data: what they are rows of.
            shares: of β, for each step: see `warm_to`.

        """
        knobs = self.knobs
        if "beta" in knobs:
            knobs = knobs | {"beta": self.blocks[0].new_tensor([self.algorithm.beta * own for own in shares])}
        try:
            self.blocks, self.memory, bounds = self._many(
                self.blocks, self.memory, knobs, self.buffers, data, index, self.centring.means
            )
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return self.blocks[0].new_full((len(index),), math.nan)
        self.taken += len(index)
        if self._many.executed == "traced":  # no compiler
            self.together, self.step = 1, self.ragged
        return bounds

    def _take_together(self, steps: int) -> None:
        """So many steps a call from now on, or as many as an epoch has."""
        self.together = max(1, min(steps, self.n_units // self.algorithm.batch_size))
        if self.together > 1:
            step = self.step.step
            self._many = Lowered(steps_together(step, self.together), self.step.how)

    def _move(self, gradient: Blocks) -> None:
        """A torch optimiser's step, at the slowed rate: its own, as its schedule knows it, is put back."""
        groups = self.torch_optimiser.optimiser.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups if self.slowed != 1 else ():
            group["lr"] = group["lr"] * self.slowed
        self.blocks = self.torch_optimiser(gradient, self.knobs.get("least"))
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def warm_to(self, share: float) -> None:
        """β at this share of what it is to be."""
        if "beta" in self.knobs:
            self.knobs["beta"].fill_(self.algorithm.beta * share)

    def end_epoch(self, elbo: float) -> None:
        """The learning rate of the next epoch."""
        self.schedule.step(elbo)
        self.knobs["rate"].fill_(self.rate)

    @property
    def rate(self) -> float:
        """The learning rate as it counts now."""
        return self.schedule.rate * self.slowed

    def _fitting(self) -> int:
        """Steps of a call that leave few of an epoch's to be taken one by one."""
        full = self.n_units // self.algorithm.batch_size
        return min(reversed(TOGETHER), key=lambda steps: full % steps)

    @property
    def undecided(self) -> bool:
        """Whether steps are still timed to decide what executes those after them."""
        return self.step.how == "auto" and self.taken < PROBED

    @property
    def executed(self) -> str:
        """What executes the steps."""
        return self._many.executed if self.together > 1 else self.step.executed

    def lowered(self) -> dict[str, Any]:
        """The options of SVI that execute the steps left as they are executed here, for a run that goes on."""
        if self.undecided:
            return {"lowering": "auto"}
        return {"lowering": self.executed, "steps_per_execution": self.together}

    def point(self) -> dict[str, Any]:
        """Parameters and the optimiser's memory, for `return_to`; later steps leave it as it is."""
        if self.own_adam:
            means = {slot: joined(self.memory[slot]) for slot in ("mean", "square")}
            memory: Any = self.memory | means
        else:
            memory = deepcopy(self.torch_optimiser.optimiser.state_dict())
        return {"flat": joined(self.blocks), "memory": memory}

    def return_to(self, point: dict[str, Any], history: Iterable[float]) -> None:
        """Parameters and the optimiser's memory as they were, `history` being that of the epochs before."""
        like, blocks = self.blocks[0], self.layout.blocks
        self.blocks = blocks(point["flat"].to(like))
        self.begin(history)
        if self.own_adam:
            self.memory = {slot: value.to(like) for slot, value in point["memory"].items()}
            self.memory |= {slot: blocks(self.memory[slot]) for slot in ("mean", "square")}
        else:
            self.torch_optimiser.optimiser.load_state_dict(deepcopy(point["memory"]))

    def state(self) -> State:
        """Parameters and buffers."""
        inside = self.layout.of_blocks(self.blocks)
        return self.centring.outside(inside, self.centring.means) | self.buffers

    def _probe(self) -> None:
        """Count a step; the first of a run that is to decide are timed."""
        undecided = self.undecided
        self.taken += 1
        if not undecided:
            return
        now = time.monotonic()
        if math.isfinite(self.ended):  # the first step of a process, which records, is none to go by
            self.intervals.append(now - self.ended)
        self.ended = now
        if self.taken == PROBED:
            self._decide(median(self.intervals or [0.0]), self.planned - self.taken)

    def _decide(self, took: float, left: int) -> None:
        """What executes the steps that are left, by the seconds that one has taken."""
        if took * COMPILE_GAIN * left > COMPILE_SECONDS:
            self.ragged, self.step = self.step, Lowered(self.step.step, "compiled")
            repays = took < TINY_SECONDS and left * TOGETHER_GAIN > COMPILE_SECONDS
            asked = self.algorithm.steps_per_execution
            self._take_together(asked or (self._fitting() if repays else 1))
        log.info(
            "%s steps took %.2g ms each; the %d left run %s, %d a call",
            self.ragged.executed,
            1e3 * took,
            left,
            self.step.executed,
            self.together,
        )
