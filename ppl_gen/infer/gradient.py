"""The gradient of the mean log-likelihood where EM can run, in units that the data's own do not change."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import State, log_marginal
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.streaming import standard_blocks
from ppl_gen.program.families import in_standard_units
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

CHUNK = 16_384


def mean_gradient(program: Program, state: State, table: Table) -> dict[str, Tensor]:
    """∇ (1/Σw) [Σ_d w_d log p(x_d) + log prior] by unconstrained parameter, in standard units, over all rows.

    Zero at a maximum of the likelihood (F4), and of the posterior where there are priors. For programs that
    EM can fit: see `route.em_obstacle`.
    """
    standard = Standard(program, table, state)
    inside = {path: value.detach() for path, value in standard.enter(state).items()}
    learned = {path: inside[path].clone().requires_grad_() for path, _ in program.named_parameters()}
    total = {path: torch.zeros_like(value) for path, value in learned.items()}
    with pyro_scope(), in_standard_units():
        for rows, weights in standard_blocks(standard, table, CHUNK):
            values = log_marginal(program, inside | learned, rows)
            if weights is not None:
                values = values * torch.tensor(weights).to(values)
            value = values.sum() / table.total
            gradients = torch.autograd.grad(value, list(learned.values()))
            for path, gradient in zip(learned, gradients, strict=True):
                total[path] += gradient
        if any(True for _ in program.priors):
            value = torch.func.functional_call(program, inside | learned, ("log_prior",)) / table.total
            for path, own in zip(learned, _gradients(value, learned), strict=True):
                total[path] += own
    return total


def _gradients(value: Tensor, learned: dict[str, Tensor]) -> list[Tensor]:
    """By parameter, 0 for those that the value does not depend on."""
    found = torch.autograd.grad(value, list(learned.values()), allow_unused=True)
    return [
        torch.zeros_like(own) if gradient is None else gradient
        for own, gradient in zip(learned.values(), found, strict=True)
    ]
