"""Optimisers of one flat vector: Adam as a pure update inside the lowered step, torch's own beside it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_gen.infer.algorithms import OPTIMIZERS, SVI
from ppl_gen.infer.enumeration import State

Memory = dict[str, Tensor]


class Layout:
    """Where each parameter lies in one flat vector; a step then has one parameter, whatever the model."""

    def __init__(self, parameters: State) -> None:
        self.paths = list(parameters)
        self.shapes = [parameters[path].shape for path in self.paths]
        self.sizes = [math.prod(shape) for shape in self.shapes]

    def flatten(self, parameters: State) -> Tensor:
        """One vector, in the order of the paths."""
        return torch.cat([parameters[path].reshape(-1) for path in self.paths])

    def unflatten(self, flat: Tensor) -> State:
        """Views of the vector in the parameters' shapes."""
        parts = flat.split(self.sizes)
        return {p: part.reshape(s) for p, part, s in zip(self.paths, parts, self.shapes, strict=True)}


def adam_memory(flat: Tensor) -> Memory:
    """First and second moments and the step count, at the start."""
    return {
        "mean": torch.zeros_like(flat),
        "square": torch.zeros_like(flat),
        "step": torch.zeros((), dtype=flat.dtype, device=flat.device),
    }


def adam(flat: Tensor, gradient: Tensor, memory: Memory, rate: Tensor) -> tuple[Tensor, Memory]:
    """One step of Adam (Kingma & Ba 2015) with torch's defaults, as a pure function."""
    step = memory["step"] + 1
    mean = memory["mean"].lerp(gradient, 0.1)
    square = memory["square"] * 0.999 + 0.001 * gradient * gradient
    scale = (square / (1 - 0.999**step)).sqrt() + 1e-8
    moved = flat - rate * (mean / (1 - 0.9**step)) / scale
    return moved, {"mean": mean, "square": square, "step": step}


class TorchOptimiser:
    """Any torch optimiser, holding the parameters in their own shapes."""

    def __init__(self, algorithm: SVI, layout: Layout, flat: Tensor) -> None:
        self.layout = layout
        self.leaves = {path: value.clone() for path, value in layout.unflatten(flat).items()}
        leaves, named = list(self.leaves.values()), algorithm.optimizer
        self.optimiser: torch.optim.Optimizer = (
            OPTIMIZERS[named](leaves, lr=algorithm.learning_rate) if isinstance(named, str) else named(leaves)
        )

    def __call__(self, gradient: Tensor) -> Tensor:
        """Move along the gradient of the loss; the parameters afterwards, flat."""
        for path, part in self.layout.unflatten(gradient).items():
            self.leaves[path].grad = part.clone()
        self.optimiser.step()
        return self.layout.flatten(self.leaves)
