"""`Net` as a layer: a module of the user's own, made, tried out, and called row by row."""

from __future__ import annotations

import copy
import math
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ppl_gen.declare.terms import Net
from ppl_gen.errors import SpecError
from ppl_gen.program.layers import MLPLayer, build, narrowed
from ppl_gen.program.scope import Inputs, Lookup, Scope, Target, Values

TRIED = 4  # rows that a new module is tried on


class NetLayer(MLPLayer):
    """A user's module between what enters it and a parameter; its numbers have the names it gives them."""

    def __init__(self, term: Net, target: Target, scope: Scope) -> None:
        nn.Module.__init__(self)
        self.inputs, self.lookup = Inputs(term.of, scope, network=True), Lookup((), scope)
        self.axes = narrowed(target, term.dim)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()  # none but the module's own
        self.n_hidden = 0
        self.net = made(term, self.inputs.width, math.prod(self.axes), target.name)

    def hidden(self, values: Values) -> Tensor:
        """What comes out: a named Net used as a value is that."""
        return self.forward(values)

    def forward(self, values: Values) -> Tensor:
        """The predictor, (*batch, *axes)."""
        parts = self.inputs(values, self._dtype(values))
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        entering = torch.cat([part.expand(*lead, part.shape[-1]) for part in parts], -1)
        out: Tensor = self.net(entering.reshape(-1, entering.shape[-1]))
        assert self.axes is not None
        return out.reshape(*lead, *self.axes)

    def numbers(self) -> dict[str, Tensor]:
        """The module's parameters, by its own names."""
        return dict(self.net.named_parameters())

    def _dtype(self, values: Values) -> torch.dtype:
        learned = chain(self.net.parameters(), self.net.buffers(), values.values())
        return next(t.dtype for t in learned if t.is_floating_point())


def made(term: Net, inputs: int, outputs: int, place: str) -> nn.Module:
    """A term's module, in float64: imported where the term names a place, copied where it is one already.

    Raises:
        SpecError: it cannot be imported, is no module, fails on rows of `inputs` numbers, gives other than
            `outputs`, or is not one function of one row.

    """
    source: Any = _imported(term.module, place) if isinstance(term.module, str) else term.module
    try:
        net = copy.deepcopy(source) if isinstance(source, nn.Module) else source(inputs, outputs)
    except Exception as error:  # whatever the user's code raises
        raise _wrong(
            term, place, f"fails when it is called with {inputs} inputs, {outputs} outputs", error
        ) from error
    if not isinstance(net, nn.Module):
        raise _wrong(term, place, f"gives a {type(net).__name__}, not a torch.nn.Module")
    net = net.double()
    for module in net.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if not parameter.requires_grad:  # a frozen number is no parameter of the model
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())
    names = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    if len(names) > len([*net.parameters()]):
        raise _wrong(term, place, "has two names for one parameter, which cannot be stored")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _try(net, inputs, outputs, term, place)
    return net


def _try(net: nn.Module, inputs: int, outputs: int, term: Net, place: str) -> None:
    """Hold a module to being one function of one row."""
    rows = torch.linspace(-1, 1, TRIED * inputs, dtype=torch.float64).reshape(TRIED, inputs)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        in_use, alone = net.eval()(rows), net(rows[:1])
        training = net.train()(rows)
    except Exception as error:  # whatever the user's code raises
        raise _wrong(term, place, f"fails on rows of {inputs} numbers, ({TRIED}, {inputs})", error) from error
    shape = tuple(getattr(training, "shape", ()))
    if shape != (TRIED, outputs):
        raise _wrong(term, place, f"turns ({TRIED}, {inputs}) into {shape}; needed is ({TRIED}, {outputs})")
    steady = all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    if not (steady and torch.equal(in_use, training)):
        raise _wrong(
            term,
            place,
            "acts differently in training and in use, as dropout and batch normalisation do; it must not",
        )
    if not torch.allclose(alone, in_use[:1], rtol=1e-6, atol=1e-9):
        raise _wrong(term, place, "gives a row another value when other rows stand beside it")


def _imported(place_of: str, place: str) -> Any:
    module, _, name = place_of.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:  # an import runs the user's code
        raise SpecError(
            f"{place}: {place_of} cannot be imported: {type(error).__name__}: {error}", word="Net"
        ) from error
    if not callable(found):
        raise SpecError(f"{place}: {place_of} is a {type(found).__name__}, nothing to call", word="Net")
    return found


def _wrong(term: Net, place: str, what: str, error: Exception | None = None) -> SpecError:
    lines = str(error or "").splitlines()
    reason = f": {type(error).__name__}: {lines[0] if lines else 'no reason given'}" if error else ""
    return SpecError(f"{place}: {term.label} {what}{reason}", word="Net")


@build.register
def _(term: Net, target: Target, scope: Scope, intercept: bool = True) -> nn.Module:  # noqa: ARG001
    return NetLayer(term, target, scope)
