"""What SVI trains: a model and a guide at any parameters, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ppl_gen.declare.scope import node_parents
from ppl_gen.infer.centring import Centring
from ppl_gen.infer.elbo import Half, functional_pair
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.floors import at_the_floor, least_parameters
from ppl_gen.infer.ordering import by_decreasing_weight, latent_statistics
from ppl_gen.program.program import Program

Which = Literal["model", "guide"]


class Counted(Protocol):
    """How many rows there are, and how often they count: a Table, or as much of one."""

    @property
    def n_units(self) -> int:
        """Rows."""

    @property
    def weights(self) -> Any:
        """How often each counts, (N,), or None."""

    @property
    def total(self) -> float:
        """The sum of that, or the rows."""


class Pair(Protocol):
    """A model and a guide over named parameters, none of which a run moves: steps are functions of a `State`."""

    @property
    def device(self) -> torch.device:
        """Of the parameters."""

    @property
    def centring(self) -> Centring:
        """The coordinates that an optimiser steps in."""

    def parameters(self) -> State:
        """Copies of the trained numbers, unconstrained, as they are at the beginning."""

    def buffers(self) -> State:
        """Copies of what else the halves compute with."""

    def at(self, state: State) -> AbstractContextManager[tuple[Half, Half]]:
        """Model and guide at these parameters; all that is asked of their sites is asked inside."""

    def log_prior(self, state: State) -> Tensor | None:
        """The log-density of the parameters' priors: a scalar; None where none has one."""

    def least(self) -> State:
        """The least entries of some of the parameters, −∞ where there is none."""

    def floored(self, state: State, rows: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Columns whose scale lies at its floor, as these rows tell."""

    def concluded(self, state: State, rows: Any) -> State:
        """The state as a reader is to see it, where several are the same law."""

    def around(
        self, which: Which, name: str, law: Any, state: State, values: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """A site's parameters and its parents' values, as messages call them; None where nothing is known."""


class Declared:
    """A declaration's Program as a `Pair`.

    Args:
        program: the compiled model.

    Example:
        >>> from ppl_gen.program.program import compile_spec
        >>> pair = Declared(compile_spec("vae", {"x": [[0.0, 1.0], [1.0, 0.5]]}))
        >>> with pair.at(pair.parameters() | pair.buffers()) as (model, guide):
        ...     sorted(guide({"x": torch.zeros(5, 2)}))
        ['z']

    """

    def __init__(self, program: Program) -> None:
        self.program = program

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.program.device

    @property
    def centring(self) -> Centring:
        """Observed columns counted from their means."""
        return Centring(self.program)

    def parameters(self) -> State:
        """The module's parameters."""
        return {path: value.detach().clone() for path, value in self.program.named_parameters()}

    def buffers(self) -> State:
        """The module's buffers."""
        return {path: value.detach().clone() for path, value in self.program.named_buffers()}

    def at(self, state: State) -> AbstractContextManager[tuple[Half, Half]]:
        """Model and guide at these parameters."""
        return nullcontext(functional_pair(self.program, state))

    def log_prior(self, state: State) -> Tensor | None:
        """Of the parameters that have a prior."""
        if not any(True for _ in self.program.priors):
            return None
        found: Tensor = torch.func.functional_call(self.program, state, ("log_prior",))
        return found

    def least(self) -> State:
        """Of the scales of observed columns."""
        return least_parameters(self.program)

    def floored(self, state: State, rows: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Of observed real columns."""
        return at_the_floor(self.program, state, dict(rows))

    def concluded(self, state: State, rows: Any) -> State:
        """Classes in order of decreasing weight where the posterior over them is exact."""
        if self.program.continuous:
            return state
        return by_decreasing_weight(self.program, state, latent_statistics(self.program, state, rows))[0]

    def around(
        self, which: Which, name: str, law: Any, state: State, values: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """The node's parameters, and the values of its parents in the declaration."""
        del law
        guide = which == "guide"
        half = self.program.recognition if guide else self.program.generative
        entries = self.program.guide_spec if guide else self.program.spec.model
        if name not in half.draws:
            return None
        self.program.load_state_dict(state)
        working = {f"its {key}": tensor for key, tensor in half.working(name, dict(values)).items()}
        return working | {own: values[own] for own in node_parents(entries, entries[name]) if own in values}


def as_pair(own: Program | Pair) -> Pair:
    """A Program as a `Pair`; a `Pair` as it is."""
    return Declared(own) if isinstance(own, Program) else own
