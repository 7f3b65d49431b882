"""The gradient of the mean log-likelihood where EM can run, in units that the data's own do not change."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer.engine import block_rows
from ppl_gen.infer.enumeration import Rows, State, Step, log_marginal
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.streaming import equal_blocks, unkept
from ppl_gen.program.families import in_standard_units
from ppl_gen.program.lowering import Lowered, pyro_scope
from ppl_gen.program.program import Program

EAGER_BLOCKS = 12  # recording the step costs as much as lowering saves on about this many of them


def mean_gradient(program: Program, state: State, table: Table) -> dict[str, Tensor]:
    """∇ (1/Σw) [Σ_d w_d log p(x_d) + log prior] by unconstrained parameter, in standard units, over all rows.

    Zero at a maximum of the likelihood (F4), and of the posterior where there are priors. For programs that
    EM can fit: see `route.em_obstacle`.
    """
    standard = Standard(program, table, state)
    inside = {path: value.detach() for path, value in standard.enter(state).items()}
    learned = {path: inside.pop(path) for path, _ in program.named_parameters()}
    size = block_rows(program, table, 1)
    many = math.ceil(table.n_units / size) > EAGER_BLOCKS
    step = unkept(Lowered(gradient_step(program), "auto" if many else "eager", steady=(2, 3)))
    total = {path: torch.zeros_like(value) for path, value in learned.items()}
    for rows, weights in equal_blocks(standard, table, size):
        for path, own in step(learned, inside, rows, weights).items():
            total[path] += own
    if any(True for _ in program.priors):
        with pyro_scope(), in_standard_units():
            for path, own in torch.func.grad(_log_prior_of(program, inside))(learned).items():
                total[path] += own
    return {path: own / table.total for path, own in total.items()}


def gradient_step(program: Program) -> Step:
    """(learned parameters, the rest of the state, rows, weights) → ∇ Σ_d w_d log p(x_d) by learned parameter."""

    def step(learned: State, rest: State, rows: Rows, weights: Tensor) -> Mapping[str, Tensor]:
        def total(learned: State) -> Tensor:
            return (log_marginal(program, rest | learned, rows) * weights).sum()

        with in_standard_units():
            found: dict[str, Tensor] = torch.func.grad(total)(learned)
        return found

    return step


def _log_prior_of(program: Program, rest: State) -> Step:
    def log_prior(learned: State) -> Tensor:
        value: Tensor = torch.func.functional_call(program, rest | learned, ("log_prior",))
        return value

    return log_prior
