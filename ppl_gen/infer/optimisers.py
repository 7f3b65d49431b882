"""Optimisers of a few vectors: Adam as a pure update inside the lowered step, torch's own beside it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor

from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import OPTIMIZERS, SCHEDULES, SVI
from ppl_gen.infer.enumeration import State

Memory = dict[str, Any]  # of Adam: "mean" and "square", of each block, and the weights of either
LARGE = 16_384  # numbers from which a parameter is a block of its own

CHOICES = (
    f"take one of {', '.join(OPTIMIZERS)}, or a function from parameters to an optimiser that steps on gradients, "
    "as lambda p: torch.optim.SGD(p, lr=0.1)"
)

KINDS = (
    f"take one of {', '.join(SCHEDULES)}, or a function from an optimiser to one of torch's schedulers, "
    "as lambda o: torch.optim.lr_scheduler.StepLR(o, 10)"
)


class Layout:
    """Where each parameter lies in one flat vector, and in the few blocks of it that a step moves.

    A large parameter is a block, small neighbours are one together: a step has few parameters, whatever the model,
    and yet need not copy gradients of large ones into one vector.
    """

    def __init__(self, parameters: State) -> None:
        self.paths = list(parameters)
        self.shapes = {path: value.shape for path, value in parameters.items()}
        self._members: list[list[str]] = []
        after_large = True
        for path in self.paths:
            large = self._size(path) >= LARGE
            if large or after_large:
                self._members.append([])
            self._members[-1].append(path)
            after_large = large

    def flatten(self, parameters: State) -> Tensor:
        """One vector, in the order of the paths."""
        return torch.cat([parameters[path].reshape(-1) for path in self.paths])

    def unflatten(self, flat: Tensor) -> State:
        """Views of the vector in the parameters' shapes."""
        return self._shaped(self.paths, flat)

    def blocks(self, flat: Tensor) -> list[Tensor]:
        """The vector in blocks, each in memory of its own: a product may be rounded by where its matrices lie."""
        if len(self._members) == 1:
            return [flat]
        return [part.clone() for part in flat.split([sum(map(self._size, own)) for own in self._members])]

    def of_blocks(self, blocks: Sequence[Tensor]) -> State:
        """Views of the blocks in the parameters' shapes."""
        found: State = {}
        for members, block in zip(self._members, blocks, strict=True):
            found |= self._shaped(members, block)
        return found

    def _size(self, path: str) -> int:
        return math.prod(self.shapes[path])

    def _shaped(self, paths: list[str], flat: Tensor) -> State:
        parts = flat.split([self._size(path) for path in paths])
        return {path: part.reshape(self.shapes[path]) for path, part in zip(paths, parts, strict=True)}


def joined(blocks: Sequence[Tensor]) -> Tensor:
    """The vector that blocks are of."""
    return torch.cat(list(blocks)) if len(blocks) > 1 else blocks[0]


def adam_memory(blocks: Sequence[Tensor]) -> Memory:
    """Running means of the gradient and its square, and the weight that gradients have in each: 0 at the start."""
    nothing = torch.zeros((), dtype=blocks[0].dtype, device=blocks[0].device)
    return {
        "mean": [torch.zeros_like(block) for block in blocks],
        "square": [torch.zeros_like(block) for block in blocks],
        "mean_weight": nothing,
        "square_weight": nothing.clone(),
    }


def adam(
    blocks: Sequence[Tensor], gradient: Sequence[Tensor], memory: Memory, rate: Tensor
) -> tuple[list[Tensor], Memory]:
    """One step of Adam (Kingma & Ba 2015) with torch's defaults, as a pure function.

    The weights are 1 − 0.9ᵗ and 1 − 0.999ᵗ. They are carried from step to step, and divide the scalars, not the
    vectors: compiled code would take both powers again at every few numbers of a vector.
    """
    mean_weight = memory["mean_weight"] + 0.1 * (1 - memory["mean_weight"])
    square_weight = memory["square_weight"] + 0.001 * (1 - memory["square_weight"])
    moved, means, squares = [], [], []
    for block, slope, mean, square in zip(blocks, gradient, memory["mean"], memory["square"], strict=True):
        means.append(mean.lerp(slope, 0.1))
        squares.append(square * 0.999 + 0.001 * slope * slope)
        scale = squares[-1].sqrt() * square_weight.rsqrt() + 1e-8
        moved.append(block - (rate / mean_weight) * means[-1] / scale)
    return moved, {
        "mean": means,
        "square": squares,
        "mean_weight": mean_weight,
        "square_weight": square_weight,
    }


class Schedule:
    """The learning rate of each epoch, by torch's schedulers.

    Args:
        algorithm: names the schedule, or gives a function from an optimiser to a scheduler.
        optimiser: whose rate it is; None: one of its own where there is a schedule, of which only the rate is read.

    """

    def __init__(self, algorithm: SVI, optimiser: torch.optim.Optimizer | None = None) -> None:
        named = algorithm.schedule
        make = SCHEDULES[named](algorithm.epochs) if isinstance(named, str) else named
        self._optimiser, self._scheduler, self._steady = optimiser, None, algorithm.learning_rate
        if make is not None:  # torch's first optimiser takes its compiler along: most of a second
            self._optimiser = optimiser or torch.optim.SGD([torch.zeros(1)], lr=algorithm.learning_rate)
            self._scheduler = self._made(make, self._optimiser)

    def _made(
        self, make: Callable[..., Any], optimiser: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """What a schedule's function makes, if it is a scheduler."""
        try:
            found = make(optimiser)
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise FitError(
                f"SVI: the schedule's function fails on the optimiser: {error}; {KINDS}"
            ) from error
        if not isinstance(found, torch.optim.lr_scheduler.LRScheduler):
            raise FitError(f"SVI: the schedule's function gives {found!r}, which is no scheduler; {KINDS}")
        return found

    @property
    def rate(self) -> float:
        """The learning rate now."""
        return self._steady if self._optimiser is None else float(self._optimiser.param_groups[0]["lr"])

    def step(self, elbo: float) -> None:
        """To the next epoch; a scheduler that watches a loss is told −ELBO."""
        if self._scheduler is None:
            return
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # that its optimiser has not stepped, which moves no parameter here
            try:
                if isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                    self._scheduler.step(-elbo)
                else:
                    self._scheduler.step()
            except ValueError as error:  # a number of steps that it was given is less than the epochs
                who = type(self._scheduler).__name__
                raise FitError(f"SVI: {who} fails on its step, which is one an epoch: {error}") from error


class TorchOptimiser:
    """Any torch optimiser that steps on a gradient it is given, holding the parameters in their own shapes.

    Raises:
        FitError: the user's function makes none, or one that evaluates the loss itself, as L-BFGS does.

    """

    def __init__(self, algorithm: SVI, layout: Layout, blocks: Sequence[Tensor]) -> None:
        self.layout = layout
        self.leaves = {path: value.clone() for path, value in layout.of_blocks(blocks).items()}
        leaves, named = list(self.leaves.values()), algorithm.optimizer
        options: dict[str, float] = {"lr": algorithm.learning_rate}
        if algorithm.weight_decay:
            options["weight_decay"] = algorithm.weight_decay
        self.optimiser = (
            OPTIMIZERS[named](leaves, **options) if isinstance(named, str) else _made(named, leaves)
        )

    def __call__(self, gradient: Sequence[Tensor], least: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Move along the gradient of the loss, not below the least; the parameters afterwards, in blocks."""
        for path, part in self.layout.of_blocks(gradient).items():
            self.leaves[path].grad = part.clone()
        try:
            self.optimiser.step()
        except (RuntimeError, TypeError) as error:
            raise FitError(
                f"SVI: {type(self.optimiser).__name__} fails on its step: {error}; {CHOICES}"
            ) from error
        if least is not None:
            for path, part in self.layout.of_blocks(least).items():
                self.leaves[path].clamp_(min=part)
        return self.layout.blocks(self.layout.flatten(self.leaves))


def _made(function: Callable[..., Any], leaves: list[Tensor]) -> torch.optim.Optimizer:
    """What a user's function makes of the parameters, if it is an optimiser that needs nothing but gradients."""
    try:
        found = function(leaves)
    except (TypeError, ValueError) as error:
        raise FitError(
            f"SVI: the optimizer's function fails on the parameters: {error}; {CHOICES}"
        ) from error
    if not isinstance(found, torch.optim.Optimizer):
        raise FitError(
            f"SVI: the optimizer's function gives {found!r}, which is no torch optimiser; {CHOICES}"
        )
    closure = signature(type(found).step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise FitError(
            f"SVI: {type(found).__name__} evaluates the loss several times a step, by a closure; minibatches and "
            f"draws give it another loss each time. {CHOICES[0].upper()}{CHOICES[1:]}"
        )
    return found
