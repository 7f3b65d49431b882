"""The numbers of a fitted model that move, as one flat vector of identified predictors.

A predictor is left where it is if moving it changes nothing (one logit of every simplex, the first entries of a
contrast), if the declaration wrote it, or if it lies at the edge of its space, where a likelihood has no second
order to speak of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppl_gen.data.schema import Schema
from ppl_gen.infer.coordinates import at_an_end
from ppl_gen.infer.enumeration import State
from ppl_gen.program.half import Draw, Slot
from ppl_gen.program.layers import Constant, SumLayer, Table
from ppl_gen.program.program import Program

EDGE_ROWS = 1e-3  # a probability or rate is at the edge where it accounts for less of a row than this
FLOORED = 1e-7  # a variance at its floor, as a share of its column's

FIXED, BOUNDARY, REFERENCE = "fixed", "boundary", "reference"


@dataclass(frozen=True, eq=False)
class Identified:
    """A program's learned numbers, those that move laid end to end: φ.

    Args:
        program: in float64.
        base: its parameters and buffers at the estimate.
        places: path → the flat positions of the entries that move.
        status: path → why each of the others does not, "" where it does.

    Example:
        >>> from ppl_gen.program.program import compile_spec
        >>> program = compile_spec("poisson_mixture", {"x": [[0], [1], [7], [9]]})
        >>> phi = identified(program, dict(program.state_dict()), 4)
        >>> phi.count, phi.status["generative.layers.z:probs.table"].tolist()
        (3, ['reference', ''])

    """

    program: Program
    base: State
    places: dict[str, Tensor]
    status: dict[str, NDArray[np.str_]]

    @property
    def count(self) -> int:
        """P, how many numbers move."""
        return sum(len(own) for own in self.places.values())

    @property
    def flat(self) -> Tensor:
        """Their values, (P,)."""
        parts = [self.base[path].reshape(-1)[own] for path, own in self.places.items()]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def state(self, flat: Tensor) -> State:
        """Parameters and buffers with these values put in their places; differentiable."""
        new = dict(self.base)
        parts = flat.split([len(own) for own in self.places.values()]) if self.places else ()
        for (path, own), values in zip(self.places.items(), parts, strict=True):
            whole = self.base[path]
            new[path] = whole.reshape(-1).index_copy(0, own, values).reshape(whole.shape)
        return new

    def names(self) -> list[str]:
        """What each of the P numbers is called, for messages: "x.loc[0, 1]"."""
        found = []
        for path, own in self.places.items():
            label = path.removeprefix("generative.layers.").removesuffix(".table").replace(":", ".")
            shape = tuple(self.base[path].shape)
            for position in own.tolist():
                cell = ", ".join(map(str, np.unravel_index(position, shape)))
                found.append(f"{label}[{cell}]" if shape else label)
        return found


def in_double(program: Program, state: State) -> tuple[Program, State]:
    """The program and a state in float64, on the CPU; numbers written in the declaration are exact."""
    exact = Program(program.spec, program.schema).double()
    with torch.no_grad():
        for path, parameter in exact.named_parameters():
            parameter.copy_(state[path])
    return exact, {path: value.detach() for path, value in exact.state_dict().items()}


def identified(program: Program, state: State, total: float) -> Identified:
    """The identified predictors of a program at these parameters, found on `total` rows."""
    exact, base = in_double(program, state)
    users: dict[str, tuple[Draw, str, Slot]] = {}
    for draw in exact.generative.draws.values():
        for key, slot in draw.slots.items():
            users.setdefault(slot.layer, (draw, key, slot))
    places, status = {}, {}
    for key, layer in exact.generative.layers.items():
        for path, part, in_sum in _parts(layer, f"generative.layers.{key}"):
            for name, parameter in part.named_parameters():
                why = np.full(tuple(parameter.shape), "", dtype="<U9")
                if isinstance(part, Table | Constant):
                    _mark_written(why, part, base, path)
                    if key in users:
                        _mark(why, base[f"{path}.table"], *users[key], in_sum, exact.schema, total)
                status[f"{path}.{name}"] = why
                places[f"{path}.{name}"] = torch.from_numpy(np.flatnonzero(why.reshape(-1) == ""))
    return Identified(exact, base, places, status)


def _parts(layer: nn.Module, path: str, in_sum: bool = False) -> Iterator[tuple[str, nn.Module, bool]]:
    """A layer, or the terms of a sum, each with its path."""
    if isinstance(layer, SumLayer):
        for position, part in enumerate(layer.terms):
            yield from _parts(part, f"{path}.terms.{position}", in_sum=True)
    else:
        yield path, layer, in_sum


def _mark_written(why: NDArray[np.str_], part: Table | Constant, base: State, path: str) -> None:
    """Entries that the declaration wrote, and the first ones of a contrast."""
    if isinstance(part, Constant):
        why[~base[f"{path}.free"].numpy()] = FIXED
    elif part.contrast:
        why[(0,) * len(part.lookup.levels)] = REFERENCE


def _mark(
    why: NDArray[np.str_],
    table: Tensor,
    draw: Draw,
    key: str,
    slot: Slot,
    in_sum: bool,
    schema: Schema,
    total: float,
) -> None:
    """Entries at the edge, and one logit of every simplex: a shift of all of them changes nothing."""
    if not in_sum:
        edge = at_the_edge(draw, key, slot, table, max(total, 1.0), schema)
        why[edge & (why == "")] = BOUNDARY
    tied = key == "logits" and getattr(slot.term, "prior", None) is not None  # the prior knows where they lie
    if draw.node.support == "category" and not tied:
        rows, numbers = why.reshape(-1, why.shape[-1]), table.reshape(-1, table.shape[-1]).numpy()
        for row, own in zip(rows, numbers, strict=True):
            if FIXED not in row and REFERENCE not in row:
                row[own.argmax()] = REFERENCE


def at_the_edge(
    draw: Draw, key: str, slot: Slot, table: Tensor, total: float, schema: Schema
) -> NDArray[np.bool_]:
    """Which predictors of a table lie at the edge of their parameter's space, as `total` rows tell."""
    least = EDGE_ROWS / total  # for probabilities and rates
    support, constraint = draw.node.support, slot.constraint.name
    if key in draw.node.bounds:
        low, high = at_an_end(draw, key, slot, table, total)
        return low | high
    if support == "category":
        return np.asarray((table.softmax(-1) < least).numpy())
    if support == "boolean" or (draw.node.family == "Binomial" and key in ("probs", "logits")):
        p = torch.sigmoid(table)
        return np.asarray(((p < least) | (p > 1 - least)).numpy())
    if support == "count" and key == "rate":
        return np.asarray((slot.constraint.working(table) < least).numpy())
    if support == "real" and draw.name in schema.spread and key in ("scale", "cov", "scale_tril"):
        # Standard deviations: variances of columns in units of 1e±200 are no numbers.
        working, least_sd = (
            slot.constraint.working(table),
            math.sqrt(FLOORED) * np.array(schema.spread[draw.name]),
        )
        if constraint in ("covariance", "lower_cholesky"):
            pivots = working.diagonal(dim1=-2, dim2=-1).numpy()
            floored = np.any(pivots <= least_sd, axis=-1, keepdims=True)
            return np.broadcast_to(floored, tuple(table.shape))
        limit = least_sd if table.shape[-1] == len(least_sd) else least_sd.max()
        return np.asarray(working.numpy() <= limit)
    return np.zeros(tuple(table.shape), dtype=bool)
