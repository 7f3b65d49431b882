"""The maxima that restarts ended at: one and the same where log-likelihood and parameters agree, labels aside."""

from __future__ import annotations

import scipy
import torch
from torch import Tensor

from ppl_gen.infer import gates
from ppl_gen.infer.coordinates import Coordinates
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.ordering import axes_of, exchangeable, lookup_of, permuted
from ppl_gen.program.half import Half
from ppl_gen.program.program import Program

SAME_VALUE = 1e-6  # nats per row by which two restarts may differ and be at one maximum
SAME_PLACE = (
    0.02  # measured units, per parameter: 0.02 of a probability, 2 % of a scale, 0.02 sd of a location
)
ROUNDS = 3  # of aligning one latent after the other, where several are exchangeable


def group(
    program: Program, coordinates: Coordinates, points: Tensor, values: list[float], n_units: float
) -> list[list[int]]:
    """Restarts by the maximum they are at, (R, P) and their log-likelihoods: the best first, in every group too."""
    order = sorted(range(len(values)), key=lambda r: -values[r])
    groups: list[list[int]] = []
    for r in order:
        for found in groups:
            close = values[found[0]] - values[r] <= SAME_VALUE * n_units
            if close and distance(program, coordinates, points[found[0]], points[r]) <= SAME_PLACE:
                found.append(r)
                break
        else:
            groups.append([r])
    return groups


def distance(program: Program, coordinates: Coordinates, one: Tensor, other: Tensor) -> float:
    """The largest difference of two restarts' parameters, (P,) each, in measured units, labels aligned."""
    here = coordinates.measured_state(one)
    there = aligned(program, here, coordinates.measured_state(other))
    gaps = [(here[path] - there[path]).abs().max() for path in here if here[path].numel()]
    return float(torch.stack(gaps).max()) if gaps else 0.0


def aligned(program: Program, like: State, state: State) -> State:
    """The state with the categories of its latents permuted to come as near to another's as can be.

    Each latent's categories are assigned by the sum of squared differences over all tables they index (Kuhn 1955,
    https://doi.org/10.1002/nav.3800020109); with several latents, in turns.
    """
    half = program.generative
    names = [name for name in program.enumerated if exchangeable(program, name)]
    for _ in range(ROUNDS if len(names) > 1 else 1):
        for name in names:
            one, other = by_class(half, like, name), by_class(half, state, name)
            cost = ((one.unsqueeze(1) - other.unsqueeze(0)) ** 2).sum(-1)  # (K, K)
            _, order = scipy.optimize.linear_sum_assignment(cost.double().cpu().numpy())
            state = permuted(half, state, name, torch.as_tensor(order))
    return state


def by_class(half: Half, state: State, name: str) -> Tensor:
    """All that the tables hold for each category of a latent, (K, ·)."""
    parts = []
    own = {slot.layer for slot in half.draws[name].slots.values()}
    for key, layer in half.layers.items():
        for path in (p for p in state if p.startswith(f"generative.layers.{key}.")):
            leaf = gates.by_class(layer, path, state[path]) if key in own else None
            axes = axes_of(lookup_of(layer, path), name)
            if leaf is None and axes:
                leaf = state[path].movedim(axes[-1], 0)
            if leaf is not None:
                parts.append(leaf.reshape(len(leaf), -1))
    return torch.cat(parts, 1)
