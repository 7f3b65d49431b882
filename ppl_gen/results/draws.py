"""Random draws from a fitted program: of everything, or of what is latent and predicted given the rows."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.enumeration import site_log_probs
from ppl_gen.program.program import Program
from ppl_gen.results.queries import Array, exact_program, guide_trace, repeated
from ppl_gen.results.rows import Rows, at_least_one, block_size, in_blocks, read_rows, seeded


def new_rows(program: Program, n: int, given: Any, *, seed: int) -> dict[str, Array]:
    """Rows of p(x, z): every node drawn in generative order, latents too, categories by their levels."""
    n = at_least_one(n, "n")
    inputs = _inputs(program, n, given)
    size = block_size(program)
    parts: dict[str, list[Tensor]] = {name: [] for name in program.generative.draws}
    with seeded(program, seed):
        for start in range(0, n, size):
            rows = {name: value[start : start + size] for name, value in inputs.items()}
            values = program.model(rows, n=min(size, n - start))
            for name, own in parts.items():
                own.append(values[name].cpu())
    return {name: as_data(program, name, torch.cat(own).numpy()) for name, own in parts.items()}


def given_rows(
    program: Program, table: Table, *, draws: int, seed: int
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Draws of z | x_d, and of new x given those z: name → (S, N, …) for the latents, then the observed.

    Discrete latents come from their exact joint posterior, continuous ones from the guide. A discrete node that
    others depend on, known in part or lacking in these rows, is a latent here: where it is known it stays.
    """
    program = exact_program(program)
    roles, partial = program.schema.roles, program.schema.partial
    lacking = [name for name in program.inner if name not in table.arrays]
    latent = [n for n in program.generative.draws if n in (*roles.latent, *partial, *lacking)]
    observed = [name for name in roles.observed if name not in latent]
    parts: dict[str, list[Tensor]] = {name: [] for name in (*latent, *observed)}
    with seeded(program, seed):
        for rows in in_blocks(program, program.tensors(table.arrays), draws):
            count = draws * len(next(iter(rows.values())))
            known = [name for name in (*roles.inputs, *partial) if name in rows]
            given = repeated({name: rows[name] for name in known}, draws)
            values = program.model(given | latents_given(program, rows, draws), n=count)
            for name, own in parts.items():
                own.append(values[name].reshape(draws, -1, *values[name].shape[1:]).cpu())
    drawn = {name: _plain(program, name, torch.cat(own, dim=1).numpy()) for name, own in parts.items()}
    return {name: drawn[name] for name in latent}, {name: drawn[name] for name in observed}


def latents_given(program: Program, rows: Rows, draws: int) -> Rows:
    """S draws of every latent given each of N rows: (S·N, …)."""
    drawn: Rows = {}
    if program.recognition.draws:
        rows, draws = repeated(rows, draws), 1
        trace = guide_trace(program, rows, enumerate_discrete=False)
        drawn = {name: trace.nodes[name]["value"] for name in program.recognition.draws}
    return drawn | _enumerated_given(program, rows | drawn, draws)


def _enumerated_given(program: Program, rows: Rows, draws: int) -> Rows:
    """Draws of the latents that are summed out, from their joint posterior."""
    names = program.enumerated_in(rows)
    if not names:
        return {}
    log_probs = site_log_probs(program, program.state_dict(), rows)
    joint = reduce(add, log_probs.values())  # (…, N), the i-th latent on axis −2−i
    flat = joint.reshape(-1, joint.shape[-1]).softmax(0)
    chosen = torch.multinomial(flat.T, draws, replacement=True).T.reshape(-1)  # (S·N,)
    positions = torch.unravel_index(chosen, joint.shape[:-1])
    found = {}
    for i, name in enumerate(names):
        draw = program.generative.draws[name]
        support = draw.family.support(draw.sizes).to(joint.device)
        value = support[positions[-1 - i]]
        found[name] = value.to(joint.dtype) if value.is_floating_point() else value
    return found


def _inputs(program: Program, n: int, given: Any) -> Rows:
    names = program.schema.roles.inputs
    if not names:
        if given is not None:
            raise FitError("the model has no Input, so there is nothing for given= to say")
        return {}
    if given is None:
        needed = ", ".join(f"{name!r}: ..." for name in names)
        raise FitError(f"the model is conditional on its Inputs: pass n rows of them, given={{{needed}}}")
    table = read_rows(program, given, need="inputs")
    if table.n_units != n:
        raise FitError(f"given= has {table.n_units} rows of Inputs, and n is {n}: one row for each draw")
    return program.tensors({name: table.arrays[name] for name in names})


def _plain(program: Program, name: str, values: Array) -> Array:
    """Categories, counts and 0/1 cells as integers, the rest as it is."""
    return values.astype(np.int64) if program.spec.nodes[name].discrete else values


def as_data(program: Program, name: str, values: Array) -> Array:
    """Values as the data write them: categories by their levels, counts as integers."""
    values = _plain(program, name, values)
    return program.schema.decode(name, values) if name in program.schema.k else values
