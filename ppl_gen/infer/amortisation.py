"""How much an encoder loses against posteriors fitted row by row: the amortisation gap.

ELBO(q*) − ELBO(encoder), q* of the guide's own family with parameters of its own for every row. Reference:
Cremer, Li & Duvenaud (2018).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ppl_gen.infer.decomposition import tallied
from ppl_gen.infer.elbo import TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.importance import blocks, cells_of_a_draw
from ppl_gen.infer.optimisers import Layout, Memory, adam, adam_memory
from ppl_gen.program.lowering import Lowered, pyro_scope
from ppl_gen.program.program import Program

PARTICLES = 16  # draws of each step
RATE = 0.03  # of Adam, falling to 0 along a cosine

Rows = Mapping[str, Tensor]


@dataclass(frozen=True)
class Refitted:
    """ELBOs of some rows, on the same draws: (N,) each.

    Args:
        encoder: under the guide as it is.
        fitted: under parameters of their own.
        error: the standard error of their difference over the draws.

    """

    encoder: Tensor
    fitted: Tensor
    error: Tensor


class Shifted(nn.Module):
    """A layer of the guide, and for each row a number of its own that is added to each of its predictors.

    Where a predictor depends on latents drawn before, or on a class, it keeps doing so: the shift is one for each
    row, and class.
    """

    def __init__(self, layer: nn.Module, axes: int) -> None:
        super().__init__()
        self.layer, self.axes = layer, axes
        self.met: Tensor | None = None
        self.shift: nn.Parameter | None = None

    def forward(self, values: dict[str, Tensor]) -> Tensor:
        """The predictors, shifted."""
        predictors: Tensor = self.layer(values)
        if self.shift is None:
            self.met = predictors
            return predictors
        return predictors + self.shift

    def open(self, n: int) -> None:
        """Shifts for n rows, at 0; the layer has been called with several particles, on the axis before."""
        assert self.met is not None
        shape, own = self.met.shape[: self.met.ndim - self.axes], self.met.shape[self.met.ndim - self.axes :]
        particles = (1,) * (len(shape) > 1)
        self.shift = nn.Parameter(self.met.new_zeros(*shape[:-2], *particles, n, *own))
        self.met = None


def refitted(
    program: Program,
    rows: Rows,
    *,
    steps: int,
    draws: int,
    seed: int,
    told: Callable[[float], None] = lambda share: None,  # noqa: ARG005
) -> Refitted:
    """Fit the guide's parameters to each row on its own, from the encoder's, by Adam on the sampled ELBO.

    Args:
        program: at the parameters of the fit; it is left as it is.
        rows: N rows.
        steps: of Adam.
        draws: on which the ELBOs are compared, other ones than those of the steps.
        seed: of the draws.
        told: called with the share of the work that is done.

    """
    devices = [program.device] if program.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        with pyro_scope(), torch.no_grad():
            cells = cells_of_a_draw(program, dict(program.state_dict()), rows)
        n = len(next(iter(rows.values())))
        groups = list(blocks(n, PARTICLES, cells))
        found = []
        for i, (start, stop, _) in enumerate(groups):
            own = {name: value[start:stop] for name, value in rows.items()}
            open_ = _opened(program, own)
            state = dict(open_.state_dict())
            shifts = {path: state.pop(path) for path in list(state) if path.endswith(".shift")}
            at = partial(_share, told, i, len(groups))
            fitted = _climbed(open_, state, shifts, own, steps, at)
            shares = next(blocks(1, draws, cells * (stop - start)))[2]
            found.append(_compared(open_, state, (shifts, fitted), own, shares))
    sides = [torch.cat(side, 1) for side in zip(*found, strict=True)]
    error = (sides[1] - sides[0]).std(0) / draws**0.5
    return Refitted(sides[0].mean(0), sides[1].mean(0), error)


def _share(told: Callable[[float], None], group: int, groups: int, share: float) -> None:
    """Tell the share of all groups from that of one."""
    told((group + share) / groups)


def _opened(program: Program, rows: Rows) -> Program:
    """A copy of the program whose guide has shifts for these rows."""
    found = copy.deepcopy(program)
    shifted: dict[str, Shifted] = {}
    layers = found.recognition.layers
    for draw in found.recognition.draws.values():
        for slot in draw.slots.values():
            if slot.layer not in shifted:  # one that is shared by name has one shift
                shifted[slot.layer] = Shifted(layers[slot.layer], len(slot.target.axes))
                layers[slot.layer] = shifted[slot.layer]
    with pyro_scope(), torch.no_grad():
        TraceableELBO(PARTICLES).sites(found.model, found.guide, rows)
    n = len(next(iter(rows.values())))
    for layer in shifted.values():
        layer.open(n)
    return found


def _climbed(
    program: Program, state: State, shifts: State, rows: Rows, steps: int, told: Callable[[float], None]
) -> State:
    """The shifts after some steps of Adam."""
    elbo, layout = TraceableELBO(PARTICLES), Layout(shifts)

    def downhill(
        flat: Tensor, memory: Memory, rate: Tensor, state: State, rows: Rows
    ) -> tuple[Tensor, Memory]:
        def loss(flat: Tensor) -> Tensor:
            pair = functional_pair(program, state | layout.unflatten(flat))
            return -elbo.per_row(*pair, rows).sum()

        slope = torch.func.grad(loss)(flat).nan_to_num(0.0, 0.0, 0.0)
        (moved,), remembered = adam([flat], [slope], memory, rate)
        return moved, remembered

    step, flat = Lowered(downhill, "auto"), layout.flatten(shifts).detach()
    memory = adam_memory([flat])
    for taken in range(steps):
        rate = flat.new_tensor(RATE / 2 * (1 + math.cos(math.pi * taken / steps)))
        flat, memory = step(flat, memory, rate, state, dict(rows))
        told((taken + 1) / steps)
    return layout.unflatten(flat)


def _compared(
    program: Program, state: State, sides: tuple[State, State], rows: Rows, shares: list[int]
) -> tuple[Tensor, Tensor]:
    """The terms of each side's ELBOs, (S, N) each, the noise of both the same."""
    noise = torch.get_rng_state()
    found = []
    with pyro_scope(), torch.no_grad():
        for shifts in sides:
            torch.set_rng_state(noise)
            parts = [tallied(program, state | shifts, rows, share).bound for share in shares]
            found.append(torch.cat(parts).double())
    return found[0], found[1]
