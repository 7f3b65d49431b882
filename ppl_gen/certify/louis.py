"""Louis' identity: the observed information from complete data, by the formulas and the responsibilities.

−∇² log p(x) = E[−∇² log p(x, z) | x] − Var[∇ log p(x, z) | x]. Along one direction v of the parameters both
sides are numbers, and log p(x, z) at every z is what the reference gives: its first and second derivative along v
are differences of five of its values. No automatic differentiation takes part, and no Pyro.

Reference: Louis (1982), https://doi.org/10.1111/j.2517-6161.1982.tb01203.x
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ppl_gen import reference
from ppl_gen.certify import bounds
from ppl_gen.certify.evaluate import Evaluation
from ppl_gen.certify.predictors import Array
from ppl_gen.certify.subject import Subject
from ppl_gen.infer.identified import Identified

DIRECTIONS = 3
TRIAL = 1e-6  # of a unit: how far a first look along a direction goes
CHANGE = 0.05  # nats by which no log-joint changes from one of the five points to the next
LEAST_CURVED = 0.1  # curvature a row below which a coordinate moves by 1/√0.1, and no further
FLAT = 1e-9  # curvature a row that differences of log-joints do not resolve
SEEN = 1e-12  # responsibilities below this add nothing
OFFSETS = (-2, -1, 0, 1, 2)
FIRST = np.array([1, -8, 0, 8, -1]) / 12  # fourth-order differences
SECOND = np.array([-1, 16, -30, 16, -1]) / 12


def directions(curvature: Array, seed: int, count: int = DIRECTIONS) -> Array:
    """Random directions, (V, P), each coordinate in units of its own curvature a row, (P,).

    Coordinates without curvature stay: log-odds that have run off towards infinity bend by less than any step.
    """
    P = len(curvature)
    unit = np.where(curvature > FLAT, 1 / np.sqrt(np.maximum(curvature, LEAST_CURVED)), 0.0)
    drawn = np.random.default_rng(seed).normal(size=(count, P)) * unit
    return np.asarray(drawn / np.sqrt(max(P, 1)))


def along(subject: Subject, phi: Identified, direction: Array) -> tuple[float, float]:
    """Σ_d of Louis' right-hand side along a direction, and the size of the terms it is a difference of."""
    middle = bounds.exact_table(subject)
    r = reference.responsibilities(middle)
    counted = r > SEEN
    slope = _farthest(_moved(subject, phi, TRIAL * direction) - middle, counted) / TRIAL
    step = CHANGE / max(slope, CHANGE)
    # −∞ − (−∞) stands where no probability is, and is not counted.
    with np.errstate(invalid="ignore"):
        tables = [middle if not o else _moved(subject, phi, o * step * direction) for o in OFFSETS]
        changes = [np.where(counted, table - middle, 0.0) for table in tables]
    first = sum(c * change for c, change in zip(FIRST, changes, strict=True)) / step
    second = sum(c * change for c, change in zip(SECOND, changes, strict=True)) / step**2
    mean = (r * first).sum(1, keepdims=True)
    complete, missing = -(r * second), r * (first - mean) ** 2
    size = float(np.abs(complete).sum() + missing.sum())
    return float(complete.sum() - missing.sum()), size


def _moved(subject: Subject, phi: Identified, by: Array) -> Array:
    """The log-joint at every z, (N, K), the parameters moved."""
    base, state = phi.base, phi.state(phi.flat + torch.as_tensor(by))
    if subject.standard is not None:  # from the units that the derivatives were taken in to the rows' own
        base, state = (subject.standard.leave(own, subject.state) for own in (base, state))
    change = {path: (value - base[path]).numpy() for path, value in state.items() if path in phi.places}
    numbers = {path: own + change.get(path, 0.0) for path, own in subject.model.numbers.items()}
    model = Evaluation(subject.program.spec, subject.program.schema, numbers)
    return bounds.exact_table(dataclasses.replace(subject, model=model))


def rounding(subject: Subject) -> float:
    """What the last digits of columns far from 0 may do to second differences, as a share of them."""
    schema = subject.program.schema
    offset = max(
        (
            float(np.abs(np.divide(schema.centre[name], schema.spread[name])).max())
            for name in schema.centre
            if schema.centre[name]
        ),
        default=0.0,
    )
    return 1000 * float(np.finfo(np.float64).eps) * (1 + offset) / CHANGE**2


def _farthest(change: Array, counted: Array) -> float:
    found = np.abs(change[counted])
    return float(found[np.isfinite(found)].max(initial=0.0))
