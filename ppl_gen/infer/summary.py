"""The ELBO and the log-likelihood of all rows at the parameters a run ended with."""

from __future__ import annotations

import torch

from ppl_gen.data.table import Table
from ppl_gen.infer import linear_gaussian, linear_gaussian_posterior
from ppl_gen.infer.elbo import TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import State, log_marginal
from ppl_gen.infer.importance import CELLS, importance_log_likelihood
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

CHUNK = 16_384
DRAWS = 64  # importance draws a row for log p(x), and draws of the ELBO
ESTIMATED_ROWS = 10_000  # rows beyond which log p(x) is estimated on a sample of them


def bound_and_likelihood(program: Program, state: State, table: Table, seed: int) -> tuple[float, float]:
    """(ELBO, log-likelihood), both in nats summed over rows, each as often as its weight says.

    With discrete latents alone both are Σ_d log p(x_d): the posterior is exact and the gap of F2 is 0. With
    continuous ones the ELBO is the mean over draws and the log-likelihood an importance-weighted estimate (E3),
    exact where they are linear-Gaussian (E1).
    """
    tensors = program.tensors(table.arrays, table.holes)
    if not program.continuous:
        total = 0.0
        with pyro_scope(), torch.no_grad():
            for start in range(0, table.n_units, CHUNK):
                rows = {name: value[start : start + CHUNK] for name, value in tensors.items()}
                found = log_marginal(program, state, rows).double().cpu().numpy()
                own = None if table.weights is None else table.weights[start : start + CHUNK]
                total += float(found.sum() if own is None else found @ own)
        return total, total
    exact = _exact(program, state, tensors, table) if linear_gaussian.exact(program) else None
    share, picked = 1.0, None
    if table.n_units > ESTIMATED_ROWS:
        picked = torch.randperm(table.n_units, generator=torch.Generator().manual_seed(seed))[:ESTIMATED_ROWS]
        tensors = {name: value[picked.to(value.device)] for name, value in tensors.items()}
        share = table.n_units / ESTIMATED_ROWS
    bounds = _bounds(program, state, tensors, seed)
    weights = torch.ones(table.n_units) if table.weights is None else torch.from_numpy(table.weights)
    counts = weights.double() if picked is None else weights.double()[picked]
    bound = share * float(bounds @ counts)
    if exact is not None:
        return bound, exact
    values, _ = importance_log_likelihood(program, state, tensors, draws=DRAWS, seed=seed)
    return bound, share * float(values.double().cpu() @ counts)


def _exact(program: Program, state: State, tensors: dict[str, torch.Tensor], table: Table) -> float:
    """Σ_d log p(x_d) of all rows, each as often as its weight says."""
    total = 0.0
    for start in range(0, table.n_units, CHUNK):
        rows = {name: value[start : start + CHUNK] for name, value in tensors.items()}
        with torch.no_grad():
            found = linear_gaussian_posterior.log_densities(program, state, rows).numpy()
        own = None if table.weights is None else table.weights[start : start + CHUNK]
        total += float(found.sum() if own is None else found @ own)
    return total


def _bounds(program: Program, state: State, tensors: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
    """LB_d of each row, the mean over draws: (N,), on the CPU."""
    widest = max(draw.sizes.width for draw in program.generative.draws.values())
    found, chunk = [], max(1, CELLS // (DRAWS * widest))
    n = len(next(iter(tensors.values())))
    devices = [program.device] if program.device.type == "cuda" else []
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, n, chunk):
            rows = {name: value[start : start + chunk] for name, value in tensors.items()}
            bounds = TraceableELBO(DRAWS).per_row(*functional_pair(program, state), rows)
            found.append(bounds.double().cpu())
    return torch.cat(found)
