"""How large each class is according to the model, as a differentiable function of its parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import Rows, State, latent_axes, site_log_probs, sum_out
from ppl_gen.infer.identified import Identified
from ppl_gen.infer.information import block_rows, blocks
from ppl_gen.program.layers import Constant
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program


def derived(program: Program) -> tuple[str, ...]:
    """The latents whose shares are not among their own parameters: they have parents, or logits."""
    found = []
    for name in program.enumerated:
        draw = program.generative.draws[name]
        slot = next(iter(draw.slots.values()))
        layer = program.generative.layers[slot.layer]
        table = isinstance(layer, TableLayer) and not layer.lookup.names and slot.constraint.name == "simplex"
        if draw.sizes.scalar and not table and not isinstance(layer, Constant):
            found.append(name)
    return tuple(found)


def class_shares(phi: Identified, table: Table, name: str) -> tuple[Tensor, Tensor]:
    """P(z = k) before a row's observed leaves are seen, averaged over the rows: (K,), and its derivative (K, P).

    Where z depends on nothing that was observed it is one number a class; else a mean over the rows' Inputs.
    """
    flat = phi.flat
    value: Tensor | None = None
    slope: Tensor | None = None
    with pyro_scope():
        for rows, weights in blocks(phi.program, table, block_rows(phi)):

            def part(flat: Tensor, rows: Rows = rows, weights: Tensor = weights) -> Tensor:
                return _prior_of(phi.program, phi.state(flat), rows, name) @ weights / table.total

            own, derivative = part(flat).detach(), torch.autograd.functional.jacobian(part, flat)
            value = own if value is None else value + own
            slope = derivative if slope is None else slope + derivative
    assert value is not None
    assert slope is not None
    return value, slope


def _prior_of(program: Program, state: State, rows: Rows, name: str) -> Tensor:
    """P(z = k) of each row given what is observed above z: (K, N)."""
    log_probs = site_log_probs(program, state, rows)
    axes = latent_axes(program, rows)
    above = _above(program, name, axes)
    total = sum_out([log_probs[own] for own in above], [axes[own] for own in above if own != name])
    whole = total.movedim(axes[name], 0).reshape(total.shape[axes[name]], -1).exp()
    return whole.expand(whole.shape[0], len(next(iter(rows.values()))))


def _above(program: Program, name: str, axes: Mapping[str, int]) -> list[str]:
    """A latent and the latents it depends on, directly or not."""
    found, pending = [], [name]
    while pending:
        own = pending.pop()
        if own in axes and own not in found:
            found.append(own)
            pending.extend(program.spec.node_parents(own))
    return found
