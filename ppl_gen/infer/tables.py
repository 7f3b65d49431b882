"""Where SVI's tables begin: By and Free of observed nodes from the data, as in EM (rule 23)."""

from __future__ import annotations

import torch

from ppl_gen.data.stream import held
from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.moments import at_moments
from ppl_gen.infer.obstacles import m_step_obstacle
from ppl_gen.infer.standard import Standard
from ppl_gen.infer.starts import Starts
from ppl_gen.infer.steps import expectation_step, maximisation_step
from ppl_gen.infer.streaming import bounds_of
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

START_ROWS = 20_000


def start_tables(program: Program, table: Table, seed: int) -> State:
    """The program's state, its observed nodes' tables started from the data.

    A node whose parameters are all tables starts at one M-step from k-means++ responsibilities, where the
    latents are discrete; else its location, scale and covariance tables start at the columns' mean and spread.
    """
    state = {path: value.detach().clone() for path, value in program.state_dict().items()}
    observed = [name for name in program.schema.roles.observed if name in program.generative.draws]
    closed = [n for n in observed if m_step_obstacle(program, program.generative.draws[n]) is None]
    state = at_moments(program, state)
    if program.continuous or not program.enumerated or not closed:
        return state
    return _one_m_step(program, table, state, closed, seed)


def _one_m_step(program: Program, table: Table, state: State, closed: list[str], seed: int) -> State:
    sample = held(table)
    rows = min(sample.n_units, START_ROWS)
    standard = Standard(program, table, state, closed)
    few = standard.block(sample, 0, rows)
    weights = torch.ones(rows, dtype=program.dtype, device=program.device)
    start = Starts(program, sample, "k-means++", 1, seed).block(0, rows)[0]
    with pyro_scope(), torch.no_grad():
        inside = standard.enter(state)
        _, statistics = expectation_step(program, closed)(inside, few, weights, start)
        moved, regular = maximisation_step(program, closed)(inside, statistics, bounds_of(standard, table))
        return standard.leave(moved, state) if bool(regular) else state
