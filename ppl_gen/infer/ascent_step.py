"""The gradient of SVI's objective, and a step of Adam along it, as pure functions of tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.centring import Means
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.objective import Objective
from ppl_gen.infer.optimisers import Layout, Memory, adam
from ppl_gen.infer.pair import Pair, as_pair
from ppl_gen.program.program import Program

WEIGHTS = ".weights"  # the rows' weights among the data, 1 on average

Rows = dict[str, Tensor]
Blocks = list[Tensor]  # of the parameters, or of what goes with them: see `Layout`
# "rate", and "beta" where it is not 1: scalars that change on the way; as tensors they add no graph. "least", where
# some parameters have a floor: the blocks of it.
Knobs = dict[str, Any]


def gradient_step(
    program: Program | Pair, layout: Layout, algorithm: SVI, n_units: int
) -> Callable[..., tuple[Blocks, Tensor]]:
    """(parameters, buffers, rows, knobs, means) → the gradient of −mean bound (F10), and Σ_d w_d LB_d.

    The log-density of priors is spread over the N rows: each adds 1/N of it. Parameters are those of `Centring`.
    """
    objective, pair = Objective.of(algorithm), as_pair(program)
    centring = pair.centring

    def step(
        blocks: Blocks, buffers: State, rows: Rows, knobs: Knobs, means: Means | None = None
    ) -> tuple[Blocks, Tensor]:
        rows = dict(rows)
        weights = rows.pop(WEIGHTS, None)

        def loss(blocks: Blocks) -> tuple[Tensor, Tensor]:
            state = centring.outside(layout.of_blocks(blocks), means or {}) | buffers
            with pair.at(state) as halves, half_precision(algorithm, blocks[0]):
                climbed, bounds = objective.per_row(*halves, rows, knobs.get("beta"))
            if weights is not None:
                climbed, bounds = climbed * weights, bounds * weights
            log_prior = pair.log_prior(state)
            if log_prior is not None:
                share = log_prior / n_units
                climbed, bounds = climbed + share, bounds + share
            return -climbed.mean(), bounds.sum()

        gradient, bound = torch.func.grad(loss, has_aux=True)(blocks)
        if algorithm.clip_norm is not None:
            norm = torch.stack([block.norm() for block in gradient]).norm()
            share = (algorithm.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch
            gradient = [block * share for block in gradient]
        return gradient, bound

    return step


def half_precision(algorithm: SVI, like: Tensor) -> AbstractContextManager[Any]:
    """Matrix products and convolutions in bfloat16, where that is asked for."""
    # A cache of narrowed weights would outlive the tensors of a recording.
    return (
        torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False)
        if algorithm.autocast
        else nullcontext()
    )


def ascent_step(program: Program | Pair, layout: Layout, algorithm: SVI, n_units: int) -> Callable[..., Any]:
    """One step of Adam: (parameters, memory, knobs, buffers, data, index, means) → (both anew, Σ_d w_d LB_d).

    A step whose bound or gradient is not finite moves nothing, and its bound comes back as NaN.
    """
    gradient_of = gradient_step(program, layout, algorithm, n_units)

    def step(
        blocks: Blocks,
        memory: Memory,
        knobs: Knobs,
        buffers: State,
        data: Rows,
        index: Tensor,
        means: Means | None = None,
    ) -> tuple[Blocks, Memory, Tensor]:
        gradient, bound = gradient_of(blocks, buffers, picked(data, index), knobs, means)
        sound = torch.isfinite(bound) & all_finite(gradient)
        if algorithm.weight_decay:
            gradient = [g + algorithm.weight_decay * p for g, p in zip(gradient, blocks, strict=True)]
        moved, remembered = adam(blocks, gradient, memory, knobs["rate"])
        if "least" in knobs:
            moved = [torch.maximum(*both) for both in zip(moved, knobs["least"], strict=True)]

        def kept(new: Any, old: Any) -> Any:
            if isinstance(new, list):
                return [kept(*both) for both in zip(new, old, strict=True)]
            return torch.where(sound, new, old)

        unmoved = {slot: kept(new, memory[slot]) for slot, new in remembered.items()}
        return kept(moved, list(blocks)), unmoved, torch.where(sound, bound, math.nan)

    return step


def steps_together(step: Callable[..., Any], count: int) -> Callable[..., Any]:
    """That many of `ascent_step` in one call: index (count, B), β (count,) where there is one; bounds (count,)."""

    def together(
        blocks: Blocks,
        memory: Memory,
        knobs: Knobs,
        buffers: State,
        data: Rows,
        index: Tensor,
        means: Means | None = None,
    ) -> tuple[Blocks, Memory, Tensor]:
        bounds = []
        for place in range(count):
            own = knobs | {"beta": knobs["beta"][place]} if "beta" in knobs else knobs
            blocks, memory, bound = step(blocks, memory, own, buffers, data, index[place], means)
            bounds.append(bound)
        return blocks, memory, torch.stack(bounds)

    return together


def all_finite(blocks: Blocks) -> Tensor:
    """Whether the sum over all blocks is finite."""
    return torch.isfinite(reduce(add, (block.sum() for block in blocks)))


def picked(data: Rows, index: Tensor) -> Rows:
    """Some of the rows."""
    return {name: column.index_select(0, index) for name, column in data.items()}
