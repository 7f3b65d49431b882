"""The numbers of a linear-Gaussian model, read from a state and written into one, in the units of its columns.

A scale is divided by its column's unit before it is squared, and multiplied by it after the root is taken: squares
of the columns' own numbers may be beyond floating point, those of their ratios are not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_gen.infer.enumeration import State
from ppl_gen.infer.linear_gaussian import Joint, System
from ppl_gen.infer.linear_gaussian_rows import Units

MATRICES = ("covariance", "lower_cholesky")


def joint_of(system: System, state: State, units: Units) -> Joint:
    """The numbers of a state for variables and regressors in units, differentiable: float64, on the CPU.

    Args:
        system: the equations.
        state: of the program, in the data's units.
        units: a variable or regressor p enters as (p − centre)/unit.

    """

    def read(path: str) -> Tensor:
        return state[path].double().cpu()

    coefficients = torch.zeros(system.size, system.constant + 1, dtype=torch.float64)
    blocks: list[Tensor] = []
    for e in system.equations:
        for path, places in e.weights:
            coefficients[e.own, list(places)] = read(path)
        for path in e.biases:
            coefficients[e.own, system.constant] = coefficients[e.own, system.constant] + read(path)
        working, unit = e.slot.constraint.working(read(e.spread)), units.unit[e.own]
        if e.slot.constraint.name in MATRICES:
            factor = working / unit[:, None]
            blocks.append(factor @ factor.mT)
        else:
            blocks.append(torch.diag((working.expand(e.width) / unit) ** 2))
    own, centre = units.unit[: system.size], units.centre
    shifted = (coefficients @ centre + coefficients[:, -1] - centre[: system.size]) / own
    scaled = coefficients * units.unit / own[:, None]
    return Joint(torch.cat([scaled[:, :-1], shifted[:, None]], 1), torch.block_diag(*blocks))


def written(system: System, joint: Joint, state: State, units: Units) -> State:
    """A state with these numbers in it, in the data's units; what is not learned stays as it is."""
    found = dict(state)
    centre, unit, own = units.centre, units.unit, units.unit[: system.size]
    coefficients = joint.coefficients * own[:, None] / unit
    constant = (
        own * (joint.coefficients[:, -1] - joint.coefficients @ (centre / unit)) + centre[: system.size]
    )

    def put(path: str, value: Tensor) -> None:
        found[path] = value.reshape(state[path].shape).to(state[path])

    for e in system.equations:
        for path, places in e.weights:
            put(path, coefficients[e.own, list(places)])
        if e.learned is not None:
            others = [state[path].double().cpu() for path in e.biases if path != e.learned]
            rest = sum(others, torch.zeros(e.width, dtype=torch.float64))
            put(e.learned, constant[e.own] - rest)
        block = joint.noise[e.own, e.own]
        if e.noise == "full":
            put(e.spread, e.slot.constraint.predictor(torch.linalg.cholesky(block) * own[e.own, None]))
        elif e.noise != "fixed":
            scale = block.diagonal().sqrt() * own[e.own]
            put(e.spread, e.slot.constraint.predictor(scale if e.noise == "each" else scale[:1]))
    return found
