"""The ELBO and the log-likelihood of all rows at the parameters a run ended with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from ppl_gen.data.stream import StreamedTable, blocks_of, held
from ppl_gen.data.table import Table
from ppl_gen.infer import linear_gaussian, linear_gaussian_posterior
from ppl_gen.infer.enumeration import State, log_marginal
from ppl_gen.infer.importance import bounds_and_log_likelihoods
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

Rows = dict[str, torch.Tensor]

CHUNK = 16_384
DRAWS = 64  # importance draws a row for log p(x), and draws of the ELBO
ESTIMATED_ROWS = 10_000  # rows beyond which log p(x) is estimated on a sample of them


class Summed(NamedTuple):
    """What a run ended with, in nats summed over rows.

    Args:
        elbo: the bound.
        log_likelihood: at least the bound; both are of the same draws. But for the noise of the bound, where the
            log-likelihood is exact.
        notes: what could not be computed, and why, each a sentence.

    """

    elbo: float
    log_likelihood: float
    notes: tuple[str, ...] = ()


def bound_and_likelihood(program: Program, state: State, table: Table, seed: int) -> Summed:
    """ELBO and log-likelihood, both in nats summed over rows, each as often as its weight says.

    With discrete latents alone both are Σ_d log p(x_d): the posterior is exact and the gap of F2 is 0. With
    continuous ones the ELBO is the mean over draws and the log-likelihood an importance-weighted estimate (E3),
    exact where they are linear-Gaussian (E1) and float64 can hold it. What is estimated, a streamed table's sample
    stands for all rows.
    """
    if not program.continuous:
        with pyro_scope(), torch.no_grad():
            total = _over_all(program, table, partial(log_marginal, program, state))
        return Summed(total, total)
    exact, notes = None, []
    if linear_gaussian.exact(program):
        densities = partial(linear_gaussian_posterior.log_densities, program, state)
        try:
            with torch.no_grad():
                exact = _over_all(program, table, densities)
        except linear_gaussian_posterior.NoClosedFormError as reason:
            notes.append(f"{reason}. The log-likelihood is an importance-weighted estimate")
    few = held(table)
    tensors, picked = program.tensors(few.arrays, table.holes), None
    if few.n_units > ESTIMATED_ROWS:
        picked = torch.randperm(few.n_units, generator=torch.Generator().manual_seed(seed))[:ESTIMATED_ROWS]
        tensors = {name: value[picked.to(value.device)] for name, value in tensors.items()}
    found = bounds_and_log_likelihoods(program, state, tensors, draws=DRAWS, seed=seed)
    bounds, values = (own.double().cpu() for own in found[:2])
    weights = torch.ones(few.n_units) if few.weights is None else torch.from_numpy(few.weights)
    counts = weights.double() if picked is None else weights.double()[picked]
    share = 1.0 if picked is None else table.n_units / ESTIMATED_ROWS
    if isinstance(table, StreamedTable):
        share = table.total / float(counts.sum())
    bound = share * float(bounds @ counts)
    if math.isnan(bound):
        notes.append(_no_number("the ELBO", bounds))
    if exact is not None:
        return Summed(bound, exact, tuple(notes))
    estimate = share * float(values @ counts)
    if math.isnan(estimate):
        notes.append(_no_number("the log-likelihood", values))
    return Summed(bound, estimate, tuple(notes))


def _no_number(what: str, values: torch.Tensor) -> str:
    """Why a sum over rows is withheld."""
    return (
        f"{what} is no number: in {int(values.isnan().sum())} of {len(values)} rows its terms are beyond "
        "floating point at these parameters. Centre and scale the columns, or lower the learning rate"
    )


def _over_all(program: Program, table: Table, densities: Callable[[Rows], torch.Tensor]) -> float:
    """Σ_d log p(x_d) of all rows, each as often as its weight says."""
    total = 0.0
    for block in blocks_of(table, CHUNK):
        found = densities(program.tensors(block.arrays, table.holes)).double().cpu().numpy()
        total += float(found.sum() if block.weights is None else found @ block.weights)
    return total
