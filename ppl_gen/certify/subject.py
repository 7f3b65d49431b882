"""What is certified: the program in float64, some of its rows, and the same model read by NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.certify.evaluate import Evaluation, log_joint_table
from ppl_gen.certify.predictors import Array
from ppl_gen.data.table import Table
from ppl_gen.declare.scope import node_parents
from ppl_gen.infer.route import em_obstacle
from ppl_gen.infer.standard import Standard
from ppl_gen.program.marks import has_holes
from ppl_gen.program.program import Program

MOST_ROWS = 1_000


@dataclass(frozen=True, eq=False)
class Subject:
    """A program and its rows, twice: `program`, `state` and `tensors` for Pyro, the rest for the formulas.

    Args:
        program: in float64, on the CPU, its written numbers exact.
        state: its parameters and buffers.
        rows: at most 1 000 rows, by node.
        model: the model in NumPy; `guide` likewise.
        n_units: rows of the whole table.

    """

    program: Program
    state: dict[str, Tensor]
    rows: dict[str, Array]
    model: Evaluation
    guide: Evaluation
    n_units: int

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The rows as the program takes them."""
        return self.program.tensors(self.rows)

    @cached_property
    def log_joint(self) -> Array:
        """Log p(x_d, z) by the formulas at every joint state of the discrete latents: (N, K)."""
        found = log_joint_table(self.model, self.rows, self.program.enumerated)
        found.flags.writeable = False  # several lines read it
        return found

    @cached_property
    def table(self) -> Table:
        """The rows as a table of their own, each counted once."""
        n = len(next(iter(self.rows.values())))
        holes = frozenset(name for name, array in self.rows.items() if has_holes(array))
        return Table(self.program.schema, self.rows, n, holes=holes)

    @cached_property
    def standard(self) -> Standard | None:
        """The columns' shifts and units, where EM can run; None elsewhere."""
        if not self.exact or em_obstacle(self.program) is not None:
            return None
        return Standard(self.program, self.table, self.state)

    @property
    def exact(self) -> bool:
        """Whether the posterior is a finite sum: no latent is sampled, and no guide stands in for it."""
        return not self.program.continuous and not self.guide.names

    @property
    def latents_in_guide(self) -> dict[str, tuple[str, ...]]:
        """The guide's latents, each with those of them it depends on."""
        names = self.guide.names
        entries = self.guide.entries
        return {n: tuple(p for p in node_parents(entries, entries[n]) if p in names) for n in names}

    @property
    def mean_field(self) -> bool:
        """Whether every latent is unseen, normal in model and guide, and independent of the others in the guide.

        Then KL(q ‖ p) has a closed form given the other latents (F9.3, F9.5).
        """
        families = {name: self.program.spec.nodes[name].family for name in self.program.schema.roles.latent}
        return (
            bool(families)
            and not self.program.schema.partial
            and set(families) == set(self.guide.names)
            and all(self.guide.predictors.node(name).family == family for name, family in families.items())
            and set(families.values()) <= {"Normal", "MultivariateNormal"}
            and not any(self.latents_in_guide.values())
        )


def subject_of(program: Program, table: Table, seed: int, state: Mapping[str, Any] | None = None) -> Subject:
    """The subject at the program's own parameters, or at those of `state`.

    Args:
        program: of any dtype and device.
        table: its rows; beyond 1 000, that many are drawn without replacement.
        seed: of the drawn rows.
        state: parameters by path; default the program's.

    """
    source = dict(program.state_dict() if state is None else state)
    exact = Program(program.spec, program.schema).double()  # numbers written in the declaration, unrounded
    with torch.no_grad():
        for path, parameter in exact.named_parameters():
            parameter.copy_(source[path])
    # Rows of weight 0 are no part of what was fitted.
    picked = np.arange(table.n_units) if table.weights is None else np.flatnonzero(table.weights)
    if len(picked) > MOST_ROWS:
        picked = np.sort(np.random.default_rng(seed).choice(picked, MOST_ROWS, replace=False))
    kept = {path: value.detach() for path, value in exact.state_dict().items()}
    numbers = {path: value.numpy() for path, value in kept.items()}
    spec, schema = program.spec, program.schema
    return Subject(
        program=exact,
        state=kept,
        rows={name: array[picked] for name, array in table.arrays.items()},
        model=Evaluation(spec, schema, numbers),
        guide=Evaluation(spec, schema, numbers, exact.guide_spec),
        n_units=table.n_units,
    )


def first_rows(subject: Subject, most: int) -> Subject:
    """The subject on its first rows."""
    return replace(subject, rows={name: array[:most] for name, array in subject.rows.items()})
