"""The gradient of the mean log-likelihood where EM can run, in units that the data's own do not change."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import State, log_marginal
from ppl_gen.infer.standard import Standard
from ppl_gen.program.families import in_standard_units
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

CHUNK = 16_384


def mean_gradient(program: Program, state: State, table: Table) -> dict[str, Tensor]:
    """∇ (1/Σw) Σ_d w_d log p(x_d) by unconstrained parameter, columns in standard units, over all rows.

    Zero at a maximum of the likelihood (F4). For programs that EM can fit: see `route.em_obstacle`.
    """
    standard = Standard(program, table, state)
    inside = {path: value.detach() for path, value in standard.enter(state).items()}
    learned = {path: inside[path].clone().requires_grad_() for path, _ in program.named_parameters()}
    total = {path: torch.zeros_like(value) for path, value in learned.items()}
    with pyro_scope(), in_standard_units():
        for start in range(0, table.n_units, CHUNK):
            rows = standard.block(table, start, min(start + CHUNK, table.n_units))
            values = log_marginal(program, inside | learned, rows)
            if table.weights is not None:
                values = values * torch.tensor(table.weights[start : start + CHUNK]).to(values)
            value = values.sum() / table.total
            gradients = torch.autograd.grad(value, list(learned.values()))
            for path, gradient in zip(learned, gradients, strict=True):
                total[path] += gradient
    return total
