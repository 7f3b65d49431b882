"""Functions of columns, carried to other units of what enters them and of what they are the location of."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ppl_gen.infer.enumeration import State
from ppl_gen.program.constraints import floored_log
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import Constant, LinearLayer, MLPLayer, Offset, SumLayer
from ppl_gen.program.layers import Table as TableLayer
from ppl_gen.program.program import Program

PREFIX = "generative.layers."


def by_tables(program: Program, draw: Draw) -> bool:
    """Whether all parameters of a node are numbers or tables, for its family to rescale."""
    layers = [program.generative.layers[slot.layer] for slot in draw.slots.values()]
    return all(isinstance(layer, Constant | TableLayer) for layer in layers)


def can_move(program: Program, name: str) -> bool:
    """Whether every function that a node's or Input's columns enter, and those it has itself, can take up units."""
    for layer in program.generative.layers.modules():
        if isinstance(layer, Offset) and layer.name == name:
            return False
        if isinstance(layer, MLPLayer) and name in layer.inputs.names:
            return False
        if isinstance(layer, LinearLayer) and name in layer.inputs.names and not layer.free_bias:
            return False
    draw = program.generative.draws.get(name)
    if draw is None:
        return True
    if draw.node.support != "real" or not draw.family.takes_units or _shares(program, draw):
        return False
    if by_tables(program, draw):
        return not any(isinstance(layer, TableLayer) and layer.ordered for layer in _layers(program, draw))
    return draw.family.reparameterised and set(draw.slots) == {"loc", "scale"} and _takes_units(program, draw)


def _shares(program: Program, draw: Draw) -> bool:
    """Whether a parameter is another's as well, by name: it cannot take up the units of both."""
    slots = [slot.layer for other in program.generative.draws.values() for slot in other.slots.values()]
    return any(slots.count(slot.layer) > 1 for slot in draw.slots.values())


def move_inputs(program: Program, state: State, name: str, shift: Tensor, unit: Tensor) -> State:
    """Weights and biases for columns that enter as (x − shift)/unit."""
    moved = dict(state)
    for path, layer in program.generative.named_modules(prefix="generative"):
        if not isinstance(layer, LinearLayer) or name not in layer.inputs.names:
            continue
        start = sum(layer.inputs.widths[: layer.inputs.names.index(name)])
        weight, bias = moved[f"{path}.weight"], moved[f"{path}.bias"]
        own = slice(start, start + len(shift))
        scaled = weight.clone()
        moved[f"{path}.bias"] = bias + weight[..., own] @ shift.to(weight)
        scaled[..., own] = weight[..., own] * unit.to(weight)
        moved[f"{path}.weight"] = scaled
    return moved


def move_outputs(program: Program, state: State, draw: Draw, shift: Tensor, unit: Tensor) -> State:
    """The functions and tables behind a location and a scale, for the node's columns as (x − shift)/unit."""
    moved = dict(state)
    for key, slot in draw.slots.items():
        path, layer = f"{PREFIX}{slot.layer}", program.generative.layers[slot.layer]
        if key == "loc":
            _relocate(layer, path, moved, shift, unit)
        else:
            _add_intercept(layer, path, moved, -floored_log(unit))
        floor = f"generative.floors.{draw.name}:{key}"
        if floor in moved:
            moved[floor] = moved[floor] / unit.to(moved[floor])
    return moved


def _relocate(layer: nn.Module, path: str, state: State, shift: Tensor, unit: Tensor) -> None:
    """U ↦ (u − shift)/unit, the shift in the first part that has an intercept."""
    parts = list(_parts(layer, path))
    for part, own in parts:
        for entry in _numbers(part, own):
            value = state[entry]
            per, matrix = unit.to(value), entry.startswith(f"{own}.weight")
            per = per[..., :1] if value.shape[-1] == 1 and not matrix else per
            state[entry] = value / (per.unsqueeze(-1) if matrix else per)
    for part, own in parts:
        if (intercept := _intercept(part, own)) is not None:
            value = state[intercept]
            per = (shift / unit).to(value)
            state[intercept] = value - (per[..., :1] if value.shape[-1] == 1 else per)
            return


def _add_intercept(layer: nn.Module, path: str, state: State, extra: Tensor) -> None:
    for part, own in _parts(layer, path):
        intercept = f"{own}.value" if isinstance(part, Constant) else _intercept(part, own)
        if intercept is not None:
            value = state[intercept]
            state[intercept] = value + (extra[..., :1] if value.shape[-1] == 1 else extra).to(value)
            return


def _takes_units(program: Program, draw: Draw) -> bool:
    for key, slot in draw.slots.items():
        layer = program.generative.layers[slot.layer]
        identity = getattr(slot.term, "transform", None) in (None, "identity" if key == "loc" else "exp")
        parts = [part for part, _ in _parts(layer, "")]
        known = all(isinstance(part, Constant | TableLayer | LinearLayer | MLPLayer) for part in parts)
        plain = not any(isinstance(part, TableLayer) and part.ordered for part in parts)
        partly = any(isinstance(part, Constant) and part.n_free for part in parts)
        narrow = isinstance(layer, LinearLayer | MLPLayer) and _width(layer) != draw.sizes.width
        able = not narrow and any(_intercept(part, "") is not None for part in parts)
        able = able or (key == "scale" and isinstance(layer, Constant))
        if not (identity and known and plain and able) or partly:
            return False
    return True


def _width(layer: LinearLayer | MLPLayer) -> int:
    axes = layer.own if isinstance(layer, LinearLayer) else layer.axes
    return 0 if axes is None else axes[0]


def _layers(program: Program, draw: Draw) -> list[nn.Module]:
    return [program.generative.layers[slot.layer] for slot in draw.slots.values()]


def _parts(layer: nn.Module, path: str) -> Iterator[tuple[nn.Module, str]]:
    if isinstance(layer, SumLayer):
        for i, part in enumerate(layer.terms):
            yield part, f"{path}.terms.{i}"
    else:
        yield layer, path


def _numbers(part: nn.Module, path: str) -> list[str]:
    """Everything that a location's unit divides."""
    if isinstance(part, LinearLayer):
        return [f"{path}.weight", f"{path}.bias"]
    if isinstance(part, MLPLayer):  # its output layer, which may have no bias of its own
        last = part.n_hidden
        return [f"{path}.weights.{last}"] + [f"{path}.biases.{last}"] * (len(part.biases) > last)
    return [f"{path}.table"] if isinstance(part, TableLayer) else [f"{path}.value"]


def _intercept(part: nn.Module, path: str) -> str | None:
    """Where a part's free intercept lies, if it has one."""
    if isinstance(part, LinearLayer) and part.free_bias:
        return f"{path}.bias"
    if isinstance(part, MLPLayer) and len(part.biases) > part.n_hidden:
        return f"{path}.biases.{part.n_hidden}"
    if isinstance(part, TableLayer) and not part.contrast:
        return f"{path}.table"
    return None
