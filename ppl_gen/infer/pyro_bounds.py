"""What a user's own pair says of rows at given parameters: its bound, and log p(x) by importance weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_gen.infer.ascent_step import Rows
from ppl_gen.infer.elbo import Half, TraceableELBO
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.importance import blocks, weighted
from ppl_gen.infer.noise import TURN
from ppl_gen.infer.pyro_pair import PyroPair
from ppl_gen.infer.pyro_rows import OwnRows
from ppl_gen.program.lowering import pyro_scope

DRAWS = 64  # of a row, for the bound and log p(x) of a fit
ESTIMATED_ROWS = 10_000  # rows beyond which both are estimated on a sample of them


def blocks_of(
    pair: PyroPair, state: State, rows: Rows, draws: int, seed: int
) -> Iterator[tuple[tuple[Half, Half], Rows, list[int]]]:
    """The halves at a state, a block of rows, and how many draws to take together; one where nothing is drawn."""
    n = len(next(iter(rows.values())))
    devices = [pair.device] if pair.device.type == "cuda" else []
    with TURN, pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start, stop, parts in blocks(n, draws if pair.drawn else 1, pair.width):
            block = {name: value[start:stop] for name, value in rows.items()}
            with pair.at(state) as halves:
                yield halves, block, parts if pair.side_by_side else [1] * sum(parts)


def log_weights(pair: PyroPair, state: State, rows: Rows, draws: int, seed: int) -> Iterator[Tensor]:
    """Log p(x_d, z_s) − log q(z_s | x_d), a block of rows at a time: (S, n) each."""
    for halves, block, parts in blocks_of(pair, state, rows, draws, seed):
        found = [TraceableELBO(part).log_weights(*halves, block) for part in parts]
        yield torch.cat(found).double().cpu()


def log_densities(pair: PyroPair, state: State, rows: Rows, draws: int, seed: int) -> tuple[Tensor, Tensor]:
    """Log (1/S) Σ_s p(x_d, z_s)/q(z_s | x_d) of each row (E3), and its standard error: (N,), (N,)."""
    values, errors = [], []
    for log_w in log_weights(pair, state, rows, draws, seed):
        found = weighted(log_w)
        values.append(found.log_mean)
        errors.append(found.error if pair.drawn else torch.zeros_like(found.error))
    return torch.cat(values), torch.cat(errors)


def bounds(pair: PyroPair, state: State, rows: Rows, draws: int, seed: int) -> Tensor:
    """LB_d of each row, the mean over draws: (N,)."""
    found = []
    for halves, block, parts in blocks_of(pair, state, rows, draws, seed):
        own = [part * TraceableELBO(part).per_row(*halves, block).double() for part in parts]
        found.append(torch.stack(own).sum(0).cpu() / sum(parts))
    return torch.cat(found)


def bound_and_likelihood(pair: PyroPair, state: State, rows: OwnRows, seed: int) -> tuple[float, float]:
    """(ELBO, log-likelihood), both in nats summed over rows, each as often as its weight says."""
    n, tensors, share = rows.n_units, rows.tensors, 1.0
    counts = torch.ones(n) if rows.weights is None else torch.from_numpy(rows.weights)
    if n > ESTIMATED_ROWS:
        picked = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:ESTIMATED_ROWS]
        tensors = {name: value[picked.to(value.device)] for name, value in tensors.items()}
        counts, share = counts[picked], n / ESTIMATED_ROWS
    bound = bounds(pair, state, tensors, DRAWS, seed) @ counts.double()
    values, _ = log_densities(pair, state, tensors, DRAWS, seed)
    total = float(values @ counts.double())
    return share * float(bound), share * total if math.isfinite(total) else math.nan
