"""Real columns centred and scaled for EM, and its parameters taken there and back.

Second moments cancel where columns lie far from 0. A normal's maximum likelihood is equivariant under shifts and
scales, so EM runs on standardised columns and the parameters are carried back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer import linear_units
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.prior_units import rescaled_priors
from ppl_gen.infer.sites import site_of
from ppl_gen.program.families import Family
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import Constant
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.marks import pattern_key, patterns_key
from ppl_gen.program.program import Program

# Of a standardised column: below, Σx²/n − mean² has no correct digits left to speak of.
VARIANCE_FLOOR = Family.variance_floor


MOST_PATTERNS = (
    512  # of missing cells: with more, a block has fewer rows than that, and each row its own pattern
)


class Standard:
    """Shift and unit of each observed real node's and Input's columns, (D,) each.

    A location or scale shared by all dimensions forbids units of their own: then the columns share one. Columns
    that enter a function other than `Linear` with an intercept stay as they are, as do those whose parameters
    are functions that cannot take up a unit. `only` leaves all other nodes as they are.
    """

    def __init__(
        self, program: Program, table: Table, state: State, only: Sequence[str] | None = None
    ) -> None:
        self.program = program
        self.shift: dict[str, Tensor] = {}
        self.unit: dict[str, Tensor] = {}
        self._patterns: tuple[Table, dict[str, tuple[Tensor, Tensor]]] | None = None
        nodes = [*program.generative.draws, *program.schema.roles.inputs]
        for name in nodes:
            skipped = only is not None and name not in only
            if skipped or name not in table.schema.centre or name not in table.arrays:
                continue
            if not linear_units.can_move(program, name):
                continue
            centre, spread = (np.asarray(m[name]) for m in (table.schema.centre, table.schema.spread))
            draw = program.generative.draws.get(name)
            if draw is not None:
                shared = _shared(program, draw, state)
                if "loc" in shared:
                    centre = np.full_like(centre, centre.mean())
                if shared:
                    largest = spread.max()  # squares of spreads may be beyond floating point
                    spread = np.full_like(spread, largest * math.sqrt(((spread / largest) ** 2).mean()))
            self.shift[name], self.unit[name] = torch.tensor(centre), torch.tensor(spread)

    def block(self, table: Table, start: int, stop: int) -> dict[str, Tensor]:
        """Rows start..stop in standard units, stored column by column (D×N) and seen as (N, D).

        Missing cells are marked in every block alike (`Program.tensors`).
        """
        arrays = {name: array[start:stop] for name, array in table.arrays.items()}
        stored = self.rows(arrays, table.holes)
        for name, (patterns, pattern) in self.patterns(table).items():
            stored[pattern_key(name)] = pattern[start:stop]
            stored[patterns_key(name)] = patterns
        return stored

    def patterns(self, table: Table) -> dict[str, tuple[Tensor, Tensor]]:
        """For each node with holes whose cells depend on one another: patterns (M, D), and each row's (N,).

        None where they are so many that sharing them costs more than it saves.
        """
        draws = self.program.generative.draws
        names = [name for name in draws if name in table.holes and draws[name].family.joined]
        if self._patterns is None or self._patterns[0] is not table:
            found = {}
            for name in names:
                distinct, own = np.unique(~np.isnan(table.arrays[name]), axis=0, return_inverse=True)
                if len(distinct) > MOST_PATTERNS:
                    continue
                marks = torch.from_numpy(distinct).to(self.program.device, self.program.dtype)
                found[name] = marks, torch.from_numpy(own.reshape(-1)).to(self.program.device)
            self._patterns = table, found
        return self._patterns[1]

    def rows(self, arrays: dict[str, NDArray[Any]], holes: frozenset[str]) -> dict[str, Tensor]:
        """Arrays of some rows as `block` gives them."""
        stored = {}
        for name, rows in arrays.items():
            moved = rows
            if name in self.shift:
                moved = (rows - self.shift[name].numpy()) / self.unit[name].numpy()
            for key, own in self.program.tensors({name: moved}, holes & {name}).items():
                stored[key] = own.movedim(0, -1).contiguous().movedim(-1, 0)
        return stored

    def enter(self, state: State) -> State:
        """The same law over standardised columns."""
        return self._rescale(state, self._moves) | rescaled_priors(self.program, state, self._moves)[0]

    @property
    def _moves(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (self.shift[name], self.unit[name]) for name in self.shift}

    def prior_units(self, state: State) -> float:
        """What the priors' log-density in standard units is above that in the data's own, in nats."""
        return rescaled_priors(self.program, state, self._moves)[1]

    def leave(self, state: State, original: State) -> State:
        """The same law over the data's own columns; written numbers come back as they were written."""
        back = {name: (-self.shift[name] / self.unit[name], 1 / self.unit[name]) for name in self.shift}
        learned = {path for path, _ in self.program.named_parameters()}
        return self._rescale(state, back) | {path: original[path] for path in state if path not in learned}

    def log_units(self, table: Table) -> float:
        """What Σ_d w_d log p of the standardised rows is above that of the rows themselves, in nats.

        Σ log unit over every seen cell of the random nodes.
        """
        total = 0.0
        for name in self.program.generative.draws:
            if name not in self.unit:
                continue
            logs = np.log(self.unit[name].numpy())
            if name not in table.holes:
                total += table.total * logs.sum()
                continue
            seen = ~np.isnan(table.arrays[name])
            counts = seen.sum(0) if table.weights is None else table.weights @ seen
            total += float((counts * logs).sum())
        return float(total)

    def bounds(self, table: Table) -> dict[str, tuple[Tensor, Tensor]]:
        """The variance floor, and the jitter of constant columns, of every node."""
        bounds = {}
        for name, draw in self.program.generative.draws.items():
            floor = torch.full((draw.sizes.width,), VARIANCE_FLOOR)
            jitter = torch.zeros(draw.sizes.width)
            if name in self.shift:
                array = table.arrays[name]
                with np.errstate(invalid="ignore"):
                    constant = torch.from_numpy(np.nanmin(array, 0) == np.nanmax(array, 0))
                jitter = torch.where(constant, 2 * VARIANCE_FLOOR, 0.0)
            like = next(iter(self.program.parameters()), torch.zeros(()))
            bounds[name] = (floor.to(like), jitter.to(like))
        return bounds

    def _rescale(self, state: State, moves: dict[str, tuple[Tensor, Tensor]]) -> State:
        moved = dict(state)
        for name, (shift, unit) in moves.items():
            moved = linear_units.move_inputs(self.program, moved, name, shift, unit)
            draw = self.program.generative.draws.get(name)
            if draw is None:
                continue
            if not linear_units.by_tables(self.program, draw):
                moved = linear_units.move_outputs(self.program, moved, draw, shift, unit)
                continue
            current, _ = site_of(self.program, draw, moved)
            like = next(iter(current.values()))
            working = draw.family.rescale(current, shift.to(like), unit.to(like))
            for key, slot in draw.slots.items():
                for path in _paths(self.program, slot.layer):
                    moved[path] = slot.constraint.predictor(working[key])
        return moved


def _shared(program: Program, draw: Draw, state: State) -> frozenset[str]:
    """The parameters of a node that are one value for all its dimensions."""
    if linear_units.by_tables(program, draw):
        return site_of(program, draw, state)[1].shared
    layers = {key: program.generative.layers[slot.layer] for key, slot in draw.slots.items()}
    return frozenset(
        key
        for key, layer in layers.items()
        if isinstance(layer, TableLayer)
        and draw.slots[key].target.shareable
        and layer.table.shape[len(layer.lookup.levels)] == 1 != draw.slots[key].target.axes[0]
    )


def _paths(program: Program, key: str) -> list[str]:
    """Where a parameter's numbers lie in the state: in both places where they are written in part."""
    layer, path = program.generative.layers[key], f"generative.layers.{key}"
    if not isinstance(layer, Constant):
        return [f"{path}.table"]
    return [f"{path}.value", f"{path}.table"] if layer.n_free else [f"{path}.value"]
