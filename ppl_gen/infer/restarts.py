"""The restarts of one EM fit, side by side: which still move, which have converged, which collapsed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ppl_gen.infer.enumeration import State, Step


def side_by_side(step: Step, in_dims: tuple[int | None, ...]) -> Callable[..., Any]:
    """A step over a leading restart axis of the arguments marked 0; one restart alone runs as it is."""
    batched = torch.func.vmap(step, in_dims)

    def run(*args: Any) -> Any:
        if len(next(iter(args[0].values()))) > 1:
            return batched(*args)
        alone = [
            pytree.tree_map(lambda leaf: leaf.squeeze(0), arg) if dim == 0 else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        return pytree.tree_map(lambda leaf: leaf.unsqueeze(0), step(*alone))

    return run


class Restarts:
    """States of all restarts, and what became of each."""

    def __init__(self, state: State, count: int) -> None:
        self.state = state  # every leaf (R, …), of the restarts still in the batch
        self.members = list(range(count))  # which restart each row of the batch is
        self.active = torch.ones(count, dtype=torch.bool)
        self.history: list[list[float]] = [[] for _ in range(count)]
        self.converged, self.collapsed = [False] * count, [False] * count
        self.statistics: dict[int, dict[str, Tensor]] = {}  # of each restart's last E-step
        self._finished: dict[int, State] = {}

    def record(self, log_likelihoods: list[float], statistics: dict[str, Tensor], tolerance: float) -> None:
        """Note each active restart's log-likelihood, and whether it has converged or gone astray."""
        for row, restart in enumerate(self.members):
            if not self.active[row]:
                continue
            history, value = self.history[restart], log_likelihoods[row]
            if math.isfinite(value):
                self.converged[restart] = bool(history) and value - history[-1] <= tolerance
                history.append(value)
                self.statistics[restart] = {name: s[row] for name, s in statistics.items()}
            else:
                self.collapsed[restart] = True
            self.active[row] = not (self.converged[restart] or self.collapsed[restart])

    def advance(self, state: State, regular: Tensor) -> None:
        """Take the new states of active restarts whose components are all regular."""
        for row in torch.nonzero(self.active & ~regular).flatten().tolist():
            self.collapsed[self.members[row]] = True
        self.active = self.active & regular
        if bool(self.active.all()):
            self.state = state
            return
        self.state = {
            path: torch.where(_like(self.active, new), new, self.state[path]) for path, new in state.items()
        }

    def retire(self) -> None:
        """Take finished restarts out of the batch once half of it has finished: each size is a graph."""
        left = torch.nonzero(self.active).flatten().tolist()
        if len(left) * 2 > len(self.members):
            return
        self._finished = self.states()
        self.state = {path: value[left] for path, value in self.state.items()}
        self.members = [self.members[row] for row in left]
        self.active = torch.ones(len(left), dtype=torch.bool)

    def states(self) -> dict[int, State]:
        """The state of every restart."""
        batch = {m: {p: v[row] for p, v in self.state.items()} for row, m in enumerate(self.members)}
        return self._finished | batch


def _like(active: Tensor, leaf: Tensor) -> Tensor:
    return active.reshape(-1, *(1,) * (leaf.ndim - 1)).to(leaf.device)
