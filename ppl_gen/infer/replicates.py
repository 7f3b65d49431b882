"""What is refitted in a bootstrap, and how the refits are told apart: weights, drawn rows, matched classes.

Reference: Efron (1979), https://doi.org/10.1214/aos/1176344552; Rubin (1981), The Bayesian bootstrap,
https://doi.org/10.1214/aos/1176345338
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer import ordering
from ppl_gen.infer.enumeration import Rows, State, latent_axes, posterior_marginals
from ppl_gen.infer.natural import natural_map
from ppl_gen.program.lowering import pyro_scope, threads_for
from ppl_gen.program.program import Program

LABELLED_ROWS = 1_000  # that labels are matched on
Weights = NDArray[np.float64]


def bayesian_weights(table: Table, draws: int, seed: int) -> Weights:
    """Rubin's: a Dirichlet draw over the units, times their number; a row of weight w is w units: (S, N)."""
    base = np.ones(table.n_units) if table.weights is None else table.weights
    drawn = np.random.default_rng(seed).standard_gamma(base, size=(draws, table.n_units))
    return np.asarray(drawn * (base.sum() / drawn.sum(1, keepdims=True)))


def resampled_weights(table: Table, draws: int, seed: int) -> Weights:
    """Efron's: how often each row comes up in as many draws with replacement as there are units: (S, N)."""
    base = np.ones(table.n_units) if table.weights is None else table.weights
    counts = np.random.default_rng(seed).multinomial(round(base.sum()), base / base.sum(), size=draws)
    return np.asarray(counts, dtype=np.float64)


def drawn_tables(program: Program, table: Table, draws: int, seed: int) -> list[Table]:
    """Tables whose rows the model draws, given the same Inputs, with the same cells missing."""
    index = np.arange(table.n_units)
    if table.weights is not None:
        if (table.weights != np.round(table.weights)).any():
            raise FitError(
                "rows of the model's own cannot have weights that are no whole numbers: use kind='weighted'"
            )
        index = np.repeat(index, table.weights.astype(np.int64))
    arrays = {name: array[index] for name, array in table.arrays.items()}
    inputs = program.tensors({name: arrays[name] for name in program.schema.roles.inputs})
    devices = [program.device] if program.device.type == "cuda" else []
    tables = []
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for _ in range(draws):
            values = program.model(inputs, n=len(index))
            own = dict(arrays)
            for name in program.schema.roles.observed:
                own[name] = _as_observed(values[name].cpu().numpy(), arrays[name])
            tables.append(replace(table, arrays=own, n_units=len(index), weights=None, warnings=()))
    return tables


def _as_observed(drawn: NDArray[Any], like: NDArray[Any]) -> NDArray[Any]:
    """Drawn values in the form of the observed ones, the same cells missing."""
    drawn = drawn.astype(like.dtype).reshape(like.shape)
    missing = like < 0 if like.dtype.kind in "iu" else np.isnan(like)
    return np.where(missing, like, drawn) if missing.any() else drawn


def aligned(program: Program, state: State, table: Table, states: Sequence[State]) -> list[State]:
    """States whose classes are those of `state`: each matched by whom it takes, by the Hungarian method.

    Σ_d Σ_k r_dk r'_dπ(k) is made as large as it can be over permutations π, for each latent whose categories can
    change places, on at most 1 000 of the rows.

    Reference: Kuhn (1955), https://doi.org/10.1002/nav.3800020109
    """
    latents = [name for name in program.enumerated if ordering.exchangeable(program, name)]
    if not latents:
        return list(states)
    some = np.unique(np.linspace(0, table.n_units - 1, min(LABELLED_ROWS, table.n_units)).astype(np.int64))
    rows = program.tensors({name: array[some] for name, array in table.arrays.items()}, table.holes)
    stacked = {path: torch.stack([own[path] for own in (state, *states)]) for path in state}
    with pyro_scope(), torch.no_grad(), threads_for(0):
        each = torch.func.vmap(lambda own: _responsibilities(program, own, rows, latents))(stacked)
    found = []
    for s, own in enumerate(states, start=1):
        for name in latents:
            overlap = each[name][0] @ each[name][s].T  # (K, K)
            _, order = scipy.optimize.linear_sum_assignment(-overlap.cpu().numpy())
            own = ordering.permuted(program.generative, own, name, torch.as_tensor(order))
        found.append(own)
    return found


def _responsibilities(program: Program, state: State, rows: Rows, names: Sequence[str]) -> dict[str, Tensor]:
    """P(z = k | x_d) of each latent, (K, N)."""
    _, marginals = posterior_marginals(program, state, rows)
    axes = latent_axes(program, rows)
    found = {}
    for name in names:
        own = marginals[name].movedim(axes[name], 0)
        found[name] = own.reshape(own.shape[0], -1, own.shape[-1]).sum(1)
    return found


def naturals(program: Program, states: Sequence[State]) -> NDArray[np.float64]:
    """All natural parameters of each state end to end, (S, M)."""
    call = natural_map(program.generative)
    stacked = {path: torch.stack([own[path] for own in states]) for path in states[0]}
    with torch.no_grad(), threads_for(0):
        found: Tensor = torch.func.vmap(call)(stacked)
    return np.asarray(found.cpu().double().numpy())
