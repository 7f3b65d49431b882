"""Parameters at the edge of their space, and the gradient in units that do not depend on the data's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ppl_gen import reference
from ppl_gen.certify import bounds, densities
from ppl_gen.certify.evaluate import joint_states
from ppl_gen.certify.predictors import Array, Values
from ppl_gen.certify.subject import Subject
from ppl_gen.infer.identified import BOUNDARY, identified
from ppl_gen.program.half import Half, Slot
from ppl_gen.program.layers import ACTIVATIONS, MLPLayer
from ppl_gen.program.program import Program

KINKED = ("relu", "leaky_relu")
AT_THE_EDGE = 1e-10  # a probability this near 0 or 1
FLOORED = 1e-7  # a variance as a share of its column's
DEAD = 0.01  # nats a row that a latent dimension must carry
FAR = 1e100  # a spread whose square and fourth power are near the end of floating point
FLAT = 1e-3  # of the largest df: from there on the law is a normal's to three digits and more


def kinked(program: Program) -> str:
    """The activations of a model's networks whose slope jumps, by name; "" where there are none."""
    used = {part.activation for part in program.generative.modules() if isinstance(part, MLPLayer)}
    return ", ".join(name for name in KINKED if ACTIVATIONS[name] in used)


def empty_classes(subject: Subject, r: Array) -> list[str]:
    """Values of a discrete latent that fewer than one row in all belongs to; r (N, K)."""
    found = []
    for name, probs in marginals_of_latents(subject, r).items():
        for level, share in enumerate(probs.mean(0)):
            if share < 1 / subject.n_units:
                found.append(f"{name}={level} is empty (share {share:.1g})")
    return found


def marginals_of_latents(subject: Subject, r: Array) -> dict[str, Array]:
    """The posterior of each discrete latent on its own: (N, its values)."""
    names = subject.program.enumerated
    states = joint_states(subject.model, names)
    full = r.reshape(len(r), *(len(states[name]) for name in reversed(names)))
    own = {name: full.ndim - 1 - position for position, name in enumerate(names)}
    return {
        name: full.sum(tuple(axis for axis in range(1, full.ndim) if axis != own[name])) for name in names
    }


def extreme_probabilities(subject: Subject) -> list[str]:
    """Learned probabilities at 0 or 1."""
    found = []
    for name in subject.model.names:
        node = subject.model.predictors.node(name)
        for key in node.terms():
            table = subject.model.table(name, key) if key == "probs" else None
            if table is None:
                continue
            at_edge = int(((table < AT_THE_EDGE) | (table > 1 - AT_THE_EDGE)).sum())
            # A category alone has probability 1 by definition.
            if at_edge and not (node.support == "category" and table.shape[-1] == 1):
                found.append(f"{at_edge} of {table.size} probabilities of {name} at 0 or 1")
    return found


def out_of_sight(subject: Subject) -> list[str]:
    """Learned numbers at an end of the range they are kept in, or so near it that the likelihood is flat."""
    found = []
    for name in subject.model.names:
        for key, (least, most) in subject.model.predictors.node(name).bounds.items():
            table = subject.model.table(name, key)
            if table is None:
                continue
            low, high = int((table <= least * 1.01).sum()), int((table >= most * FLAT).sum())
            if low:
                found.append(f"{low} of {table.size} {key} of {name} at the smallest value, {least:g}")
            if high:
                found.append(
                    f"{high} of {table.size} {key} of {name} above {most * FLAT:g}: next to a normal"
                )
    return found


def floored_variances(subject: Subject, values: Values) -> list[str]:
    """Columns whose variance, given the parents' values, is next to nothing of what the data have."""
    found = []
    for name in subject.program.schema.roles.observed:
        if subject.model.predictors.node(name).support != "real":
            continue
        given = subject.model.parameters(name, values)
        # Standard deviations: variances of columns in units of 1e±200 are no numbers.
        scale = given.get("scale")
        if scale is None:
            if subject.model.predictors.node(name).family not in densities.VECTORS:
                continue
            scale = np.diagonal(subject.model.factor(name, values), axis1=-2, axis2=-1)
        spread = np.array(subject.program.schema.spread[name])
        least = np.broadcast_to(scale, (*scale.shape[:-1], len(spread))).reshape(-1, len(spread)).min(0)
        columns = subject.program.schema.column_names(name)
        for column in np.flatnonzero(least <= np.sqrt(FLOORED) * spread):
            found.append(f"the variance of {columns[column]} is at its floor ({least[column] ** 2:.1g})")
    return found


def far_units(subject: Subject) -> list[str]:
    """Columns whose squares, or their inverses, overflow, and that have no units of their own in EM."""
    schema, standard = subject.program.schema, subject.standard
    return [
        column
        for name, spread in schema.spread.items()
        if standard is None or name not in standard.unit
        for column, own in zip(schema.column_names(name), spread, strict=True)
        if not 1 / FAR <= own <= FAR
    ]


def dead_dimensions(subject: Subject, drawn: Values) -> list[str]:
    """Latent dimensions whose posterior is the prior: they carry nothing."""
    found = []
    values = {**subject.rows, **drawn}
    for name in subject.guide.names:
        families = {half.predictors.node(name).family for half in (subject.model, subject.guide)}
        if families != {"Normal"} or not subject.mean_field:
            continue
        by_dimension = bounds.kl_by_dimension(subject, name, values)
        mean = by_dimension.reshape(-1, by_dimension.shape[-1]).mean(0)
        dead = [f"{name}[{dimension}]" for dimension in np.flatnonzero(mean < DEAD)]
        if dead:
            found.append(
                f"dead latent dimensions, KL to the prior below {DEAD} nats a row: {', '.join(dead)}"
            )
    return found


def all_found(subject: Subject, drawn: Values | None) -> list[str]:
    """Every edge of an exact fit (`drawn` is None), or of one with a guide at one draw of it."""
    found = extreme_probabilities(subject) + out_of_sight(subject)
    if drawn is None:
        found = empty_classes(subject, reference.responsibilities(bounds.exact_table(subject))) + found
        states = joint_states(subject.model, subject.program.enumerated)
        return found + floored_variances(subject, subject.rows | states)
    states = joint_states(subject.model, subject.program.enumerated, first=-1 - _depth(subject, drawn))
    found += floored_variances(subject, {**subject.rows, **drawn, **states})
    return found + dead_dimensions(subject, drawn)


def _depth(subject: Subject, drawn: Values) -> int:
    return max(1, subject.guide.log_joint({**subject.rows, **drawn}).ndim)


def inside(subject: Subject, gradient: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
    """The gradient with 0 for every number at the edge of its space, and how many these are."""
    status = identified(subject.program, subject.state, subject.n_units).status
    at_edge = {path: status[path] == BOUNDARY for path in gradient.keys() & status.keys()}
    kept = {path: np.where(at_edge.get(path, False), 0.0, own) for path, own in gradient.items()}
    return kept, sum(int(own.sum()) for own in at_edge.values())


def unit_free_norm(subject: Subject, gradient: Mapping[str, Array]) -> float:
    """The gradient's norm, locations and matrix entries counted in their columns' own spread.

    A scale's coordinate is its logarithm and has no unit. Stretching a column by c divides the derivative by
    its location by c; times the column's spread it is what it was.
    """
    scaled = dict(gradient)
    program = subject.program
    for half, path in ((program.generative, "generative"), (program.recognition, "recognition")):
        done: set[str] = set()
        for name, slot in _slots(half):
            spread = np.array(program.schema.spread.get(name, ()))
            if not spread.size or slot.layer in done:
                continue
            done.add(slot.layer)
            prefix = f"{path}.layers.{slot.layer}."
            for key in [key for key in gradient if key.startswith(prefix)]:
                scaled[key] = _in_spread(gradient[key], key.removeprefix(prefix), slot, spread)
    return float(np.sqrt(sum(float((value**2).sum()) for value in scaled.values())))


def _slots(half: Half) -> list[tuple[str, Slot]]:
    return [(name, slot) for name, draw in half.draws.items() for slot in draw.slots.values()]


def _in_spread(gradient: Array, part: str, slot: Slot, spread: Array) -> Array:
    constraint, D = slot.constraint.name, len(spread)
    if part.endswith("table"):
        if constraint == "real" and gradient.shape[-1] in (1, D):
            return np.asarray(gradient * (spread if gradient.shape[-1] == D else np.sqrt((spread**2).mean())))
        if constraint in ("covariance", "lower_cholesky"):
            rows, columns = np.tril_indices(D)
            return np.asarray(gradient * np.where(rows == columns, 1.0, spread[rows]))
    elif constraint == "real":
        if part.endswith("weight") and gradient.shape[-2] == D:
            return np.asarray(gradient * spread[:, None])
        if part.endswith("bias") and gradient.shape[-1] == D:
            return np.asarray(gradient * spread)
    return gradient
