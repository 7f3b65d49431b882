"""Real columns centred and scaled for EM, and its parameters taken there and back.

Second moments cancel where columns lie far from 0. A normal's maximum likelihood is equivariant under shifts and
scales, so EM runs on standardised columns and the parameters are carried back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import State, site_of
from ppl_gen.program.layers import Constant
from ppl_gen.program.program import Program

VARIANCE_FLOOR = 1e-8  # of a standardised column: below, Σx²/n − mean² has no correct digits left to speak of


class Standard:
    """Shift and unit of each observed real node's columns, (D,) each.

    A location or scale shared by all dimensions forbids units of their own: then the columns share one. `only`
    leaves all other nodes as they are.
    """

    def __init__(
        self, program: Program, table: Table, state: State, only: Sequence[str] | None = None
    ) -> None:
        self.program = program
        self.shift: dict[str, Tensor] = {}
        self.unit: dict[str, Tensor] = {}
        for name, draw in program.generative.draws.items():
            skipped = only is not None and name not in only
            if skipped or draw.node.support != "real" or name not in table.arrays:
                continue
            centre, spread = (np.asarray(m[name]) for m in (table.schema.centre, table.schema.spread))
            _, site = site_of(program, draw, state)
            if "loc" in site.shared:
                centre = np.full_like(centre, centre.mean())
            if site.shared:
                spread = np.full_like(spread, math.sqrt((spread**2).mean()))
            self.shift[name], self.unit[name] = torch.tensor(centre), torch.tensor(spread)

    def block(self, table: Table, start: int, stop: int) -> dict[str, Tensor]:
        """Rows start..stop in standard units, stored column by column (D×N) and seen as (N, D)."""
        stored = {}
        for name, array in table.arrays.items():
            rows = array[start:stop]
            if name in self.shift:
                rows = (rows - self.shift[name].numpy()) / self.unit[name].numpy()
            by_column = self.program.tensors({name: np.array(rows.T, order="C")})[name]
            stored[name] = by_column.movedim(-1, 0)
        return stored

    def enter(self, state: State) -> State:
        """The same law over standardised columns."""
        return self._rescale(state, {name: (self.shift[name], self.unit[name]) for name in self.shift})

    def leave(self, state: State, original: State) -> State:
        """The same law over the data's own columns; written numbers come back as they were written."""
        back = {name: (-self.shift[name] / self.unit[name], 1 / self.unit[name]) for name in self.shift}
        fixed = {path: original[path] for path in state if path.endswith((".value", ".free"))}
        return self._rescale(state, back) | fixed

    def log_unit(self) -> float:
        """Σ log unit over all columns: log p(x) of a row is this much less than log p of the standardised row."""
        return sum(float(unit.log().sum()) for unit in self.unit.values())

    def bounds(self, table: Table) -> dict[str, tuple[Tensor, Tensor]]:
        """The variance floor, and the jitter of constant columns, of every node."""
        bounds = {}
        for name, draw in self.program.generative.draws.items():
            floor = torch.full((draw.sizes.width,), VARIANCE_FLOOR)
            jitter = torch.zeros(draw.sizes.width)
            if name in self.shift:
                array = table.arrays[name]
                constant = torch.from_numpy(array.min(0) == array.max(0))
                jitter = torch.where(constant, 2 * VARIANCE_FLOOR, 0.0)
            like = next(iter(self.program.parameters()), torch.zeros(()))
            bounds[name] = (floor.to(like), jitter.to(like))
        return bounds

    def _rescale(self, state: State, moves: dict[str, tuple[Tensor, Tensor]]) -> State:
        moved = dict(state)
        for name, (shift, unit) in moves.items():
            draw = self.program.generative.draws[name]
            current, _ = site_of(self.program, draw, state)
            like = next(iter(current.values()))
            working = draw.family.rescale(current, shift.to(like), unit.to(like))
            for key, slot in draw.slots.items():
                for path in _paths(self.program, slot.layer):
                    moved[path] = slot.constraint.predictor(working[key])
        return moved


def _paths(program: Program, key: str) -> list[str]:
    """Where a parameter's numbers lie in the state: in both places where they are written in part."""
    layer, path = program.generative.layers[key], f"generative.layers.{key}"
    if not isinstance(layer, Constant):
        return [f"{path}.table"]
    return [f"{path}.value", f"{path}.table"] if layer.n_free else [f"{path}.value"]
