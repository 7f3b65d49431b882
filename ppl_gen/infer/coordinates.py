"""The learned parameters of all restarts as one vector each, and how far apart two of them are.

Two vectors are compared in *measured* coordinates, where a difference of 1 means about the same everywhere:
probabilities themselves instead of their logarithms (which run off to −∞ where a probability goes to 0),
locations in their columns' spread, scales and rates by their logarithm. A Student-t's degrees of freedom, whose
law is next to a normal's from some hundred on, are measured by log(df/(df + 10)): as a logarithm below 10 and by
1/df beyond, by which the log-likelihood is a parabola.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.infer.enumeration import State
from ppl_gen.program.constraints import Constraint
from ppl_gen.program.half import Draw, Slot
from ppl_gen.program.program import Program

LEAST_LOG = math.log(1e-300)  # where M-steps keep the logarithm of a probability of 0
FLATTENS = 10.0  # where a positive parameter with an upper bound begins to matter less
LEAST_SCALE = math.log(1e-12)  # below, a rate or scale is 0 for every purpose of comparison
UNSEEN = 1e-3  # nats over all rows by which two laws are the same to the data
NEAR = 1.01  # of an end of a range


class Coordinates:
    """(R, P) ⇄ {path: (R, …)}, of what is learned; what is not is the same for every restart.

    Args:
        program: gives the constraint that each table is kept under.
        state: one state, no restart axis.

    """

    def __init__(self, program: Program, state: State) -> None:
        learned = [path for path, _ in program.named_parameters() if path in state]
        self.shapes = {path: state[path].shape for path in learned}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.rest = {path: value for path, value in state.items() if path not in self.shapes}
        self.kinds: dict[str, str] = {}
        self.bounds: dict[str, tuple[tuple[float, float], Constraint]] = {}  # what families keep in a range
        for draw in program.generative.draws.values():
            for key, slot in draw.slots.items():
                path = f"generative.layers.{slot.layer}.table"
                self.kinds[path] = slot.constraint.name
                if key in draw.node.bounds:
                    self.bounds[path] = draw.node.bounds[key], slot.constraint

    def flatten(self, state: State) -> Tensor:
        """(R, P)."""
        count = max((state[path].shape[0] for path in self.shapes), default=1)
        leaves = [state[path].reshape(count, -1) for path in self.shapes]
        return torch.cat(leaves, 1) if leaves else torch.zeros(count, 0)

    def unflatten(self, flat: Tensor) -> State:
        """States side by side, every leaf contiguous: a graph is recorded for each layout in memory."""
        count = len(flat)
        rest = {path: value.expand(count, *value.shape).contiguous() for path, value in self.rest.items()}
        return rest | {
            path: leaf.contiguous().reshape(count, *shape)
            for (path, shape), leaf in zip(self.shapes.items(), flat.split(self.sizes, 1), strict=True)
        }

    def measured(self, flat: Tensor) -> Tensor:
        """The same vectors in measured coordinates, (R, P)."""
        leaves = flat.split(self.sizes, 1)
        parts = [self._measure(*item) for item in zip(self.shapes.items(), leaves, strict=True)]
        return torch.cat(parts, 1) if parts else flat

    def measured_state(self, point: Tensor) -> State:
        """One vector (P,) as a state in measured coordinates, of what is learned alone."""
        leaves = self.measured(point.unsqueeze(0)).split(self.sizes, 1)
        return {
            path: leaf.reshape(shape) for (path, shape), leaf in zip(self.shapes.items(), leaves, strict=True)
        }

    def inside(self, flat: Tensor) -> Tensor:
        """An extrapolated vector brought back to where M-steps keep logarithms of probabilities, and ranges."""
        parts = []
        for (path, shape), leaf in zip(self.shapes.items(), flat.split(self.sizes, 1), strict=True):
            kind = self.kinds.get(path)
            if kind == "simplex":
                logits = leaf.reshape(-1, shape[-1]).log_softmax(-1)
                leaf = logits.clamp(min=LEAST_LOG).reshape(leaf.shape)
            elif kind == "unit_interval":
                leaf = leaf.clamp(min=LEAST_LOG, max=-math.log(torch.finfo(leaf.dtype).eps))
            parts.append(leaf)
        return self.kept(torch.cat(parts, 1)) if parts else flat

    def kept(self, flat: Tensor) -> Tensor:
        """Vectors (R, P) with what families keep in a range brought back to it."""
        if self.bounds.keys().isdisjoint(self.shapes):
            return flat
        parts = []
        for path, leaf in zip(self.shapes, flat.split(self.sizes, 1), strict=True):
            if path in self.bounds:
                bounds, constraint = self.bounds[path]
                low, high = constraint.predictor(leaf.new_tensor(bounds)).unbind()
                leaf = torch.minimum(torch.maximum(leaf, low), high)
            parts.append(leaf)
        return torch.cat(parts, 1)

    def _measure(self, item: tuple[str, torch.Size], leaf: Tensor) -> Tensor:
        path, shape = item
        kind = self.kinds.get(path)
        if kind == "simplex":
            return leaf.reshape(-1, shape[-1]).softmax(-1).reshape(leaf.shape)
        if kind == "unit_interval":
            return leaf.sigmoid()
        if path in self.bounds:
            (low, _), constraint = self.bounds[path]
            return -torch.log1p(FLATTENS / constraint.working(leaf).clamp(min=low))
        return leaf.clamp(min=LEAST_SCALE) if kind == "positive" else leaf


def at_an_end(
    draw: Draw, key: str, slot: Slot, table: Tensor, total: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which predictors of a table are at the lower and the upper end of their range, as `total` rows tell.

    Near the maximum n rows of a Student-t in D dimensions differ from a normal's by n D(D + 2)/(4 df²) nats: the
    expected information of 1/df is D(D + 2)/2 a row, once location and scale have done what they can.
    """
    if key not in draw.node.bounds:
        nowhere = np.zeros(tuple(table.shape), dtype=bool)
        return nowhere, nowhere
    working = slot.constraint.working(table.detach().double().cpu()).numpy()
    least, most = draw.node.bounds[key]
    D = draw.sizes.width if working.ndim and working.shape[-1] == 1 else 1
    unseen = math.sqrt(total * D * (D + 2) / (4 * UNSEEN))
    return working <= least * NEAR, working >= min(most / NEAR, unseen)
