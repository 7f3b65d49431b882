"""Parameters on their natural scale, as a person or another fit gives them, as a program's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_gen.errors import FitError
from ppl_gen.infer.enumeration import State
from ppl_gen.program.half import Slot
from ppl_gen.program.layers import Constant, LinearLayer, MLPLayer, Offset, SumLayer
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.program import Program


def given_state(program: Program, given: Mapping[str, Mapping[str, Any]]) -> State:
    """A state from parameters on their natural scale, {"x": {"loc": …}}, in the form of `Fit.parameters`.

    A table is an array; a Linear {"weight": …, "bias": …}, a network {"weights": […], "biases": […]}, a sum a list.

    Raises FitError where a parameter is missing, unknown or of the wrong shape.
    """
    state = {path: value.clone() for path, value in program.state_dict().items()}
    draws = program.generative.draws
    unknown = sorted(set(given) - set(draws))
    if unknown:
        raise FitError(f"init has parameters of {', '.join(unknown)}; the model's nodes: {', '.join(draws)}")
    for name, draw in draws.items():
        own = given.get(name, {})
        if not isinstance(own, Mapping):
            raise FitError(f"init: {name} must map parameters to values, not {own!r}")
        strange = sorted(set(own) - set(draw.slots))
        if strange:
            raise FitError(
                f"init: {name} has no parameter {', '.join(strange)}; it has {', '.join(draw.slots)}"
            )
        for key, slot in draw.slots.items():
            layer = program.generative.layers[slot.layer]
            if isinstance(layer, Offset) or (isinstance(layer, Constant) and layer.n_free == 0):
                continue
            if key not in own:
                raise FitError(f"init lacks {name}.{key}; it needs every learned parameter")
            _give(f"init: {name}.{key}", layer, f"generative.layers.{slot.layer}", slot, own[key], state)
    return state


def _give(place: str, layer: nn.Module, path: str, slot: Slot, value: Any, state: State) -> None:
    """Put the value of one layer into the state."""
    if isinstance(layer, Constant | TableLayer):
        state[f"{path}.table"] = _table(place, layer, slot, value, state[f"{path}.table"])
    elif isinstance(layer, LinearLayer):
        parts = _entries(place, value, ("weight", "bias"))
        state[f"{path}.weight"] = _numbers(f"{place}.weight", parts["weight"], state[f"{path}.weight"])
        if layer.free_bias:
            state[f"{path}.bias"] = _numbers(f"{place}.bias", parts["bias"], state[f"{path}.bias"])
    elif isinstance(layer, MLPLayer):
        parts = _entries(place, value, ("weights", "biases"))
        for key, count in (("weights", len(layer.weights)), ("biases", len(layer.biases))):
            for i, own in enumerate(_listed(f"{place}.{key}", parts[key], count)):
                state[f"{path}.{key}.{i}"] = _numbers(f"{place}.{key}[{i}]", own, state[f"{path}.{key}.{i}"])
    elif isinstance(layer, SumLayer):
        for i, (part, own) in enumerate(
            zip(layer.terms, _listed(place, value, len(layer.terms)), strict=True)
        ):
            _add(f"{place}[{i}]", part, f"{path}.terms.{i}", slot, own, state)


def _add(place: str, part: nn.Module, path: str, slot: Slot, value: Any, state: State) -> None:
    """One term of a sum: its tables are on the linear-predictor scale."""
    if isinstance(part, TableLayer):
        state[f"{path}.table"] = _steps(part, _numbers(place, value, state[f"{path}.table"]))
    elif not isinstance(part, Constant | Offset):
        _give(place, part, path, slot, value, state)


def _table(place: str, layer: Constant | TableLayer, slot: Slot, value: Any, like: Tensor) -> Tensor:
    natural = _array(place, value)
    if not slot.constraint.holds(natural):
        raise FitError(f"{place} holds values that are not {slot.constraint.name}")
    try:
        predictor = slot.constraint.predictor(slot.constraint.from_natural(natural)).to(like)
    except RuntimeError:
        raise FitError(f"{place} is not a {slot.constraint.name} value") from None
    if predictor.shape != like.shape:
        raise FitError(f"{place} has shape {_times(natural.shape)}; its table holds {_times(like.shape)}")
    steps = _steps(layer, predictor)
    if not torch.isfinite(steps).all():
        kind = "increasing" if isinstance(layer, TableLayer) and layer.ordered else slot.constraint.name
        raise FitError(f"{place} holds values that are not {kind}")
    return steps


def _steps(layer: nn.Module, entries: Tensor) -> Tensor:
    """What a table holds for these entries: where it is ordered, the first and the logarithms of the rises."""
    if not isinstance(layer, TableLayer) or not layer.ordered:
        return entries
    return torch.cat([entries[:1], entries.diff(dim=0).log()])


def _numbers(place: str, value: Any, like: Tensor) -> Tensor:
    """An array of real numbers as a parameter of this shape."""
    found = _array(place, value).to(like)
    if found.shape != like.shape:
        raise FitError(f"{place} has shape {_times(found.shape)}; it holds {_times(like.shape)}")
    if not torch.isfinite(found).all():
        raise FitError(f"{place} holds values that are not real")
    return found


def _array(place: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError):
        raise FitError(f"{place} must be numbers, not {value!r}") from None


def _entries(place: str, value: Any, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != set(keys):
        raise FitError(f"{place} is a function: give {' and '.join(keys)}, not {value!r}")
    return value


def _listed(place: str, value: Any, count: int) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or len(value) != count:
        raise FitError(f"{place} must be a list of {count}, not {value!r}")
    return value


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"
