"""Models whose every latent is linear-Gaussian: their equations, read from a compiled program and written back.

Each random node is an affine function of others plus normal noise. With v all random nodes side by side in model
order and r the Inputs and a 1, v = A v + B r + ε with ε ~ N(0, Ω): every conditional law is normal, in closed form.
Factor analysis and probabilistic PCA (E1), several latents side by side, and one above another are such models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_gen.declare.nodes import MultivariateNormal, Normal
from ppl_gen.program.half import Draw, Slot
from ppl_gen.program.layers import Constant, LinearLayer, SumLayer, Table
from ppl_gen.program.program import Program

POSITIVE = ("exp", "softplus")  # transforms that reach every positive number


class NotLinearError(Exception):
    """What keeps a program from being linear-Gaussian, as the end of a sentence."""


@dataclass(frozen=True)
class Equation:
    """One node: its location as a function of the variables before it, and its noise.

    Args:
        name: the node's.
        own: its places among all variables.
        weights: path of a weight → the places, among variables and regressors, of what it multiplies.
        biases: paths of the learned and written numbers that make up its constant; `learned` is one of them.
        learned: path of the learned one, or None.
        noise: "each" dimension its own variance, "shared" by all, "full" covariance, or "fixed" numbers.
        spread: path of the numbers behind the noise.
        slot: the constraint they go through.

    """

    name: str
    own: slice
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    biases: tuple[str, ...]
    learned: str | None
    noise: str
    spread: str
    slot: Slot

    @property
    def width(self) -> int:
        """Its dimensions."""
        return self.own.stop - self.own.start

    @property
    def places(self) -> tuple[int, ...]:
        """What enters it, the constant apart."""
        return tuple(place for _, places in self.weights for place in places)


@dataclass(frozen=True)
class System:
    """The equations of a model; M variables, R regressors of which the last is the constant 1.

    Args:
        equations: in model order.
        regressors: Input → its levels, or None for a real one; `widths` the places it takes.
        widths: see `regressors`.
        observed: the observed nodes; `latent` the others.
        latent: see `observed`.

    """

    equations: tuple[Equation, ...]
    regressors: tuple[tuple[str, int | None], ...]
    widths: tuple[int, ...]
    observed: tuple[str, ...]
    latent: tuple[str, ...]

    @property
    def size(self) -> int:
        """M."""
        return self.equations[-1].own.stop

    @property
    def constant(self) -> int:
        """The place of the constant among variables and regressors."""
        return self.size + sum(self.widths)

    def places(self, names: tuple[str, ...]) -> Tensor:
        """The places of some nodes' dimensions."""
        own = {e.name: torch.arange(e.own.start, e.own.stop) for e in self.equations}
        return torch.cat([own[name] for name in names]) if names else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class Joint:
    """The numbers of a system: `coefficients` (M, M + R), strictly lower in its first M columns, and Ω (M, M)."""

    coefficients: Tensor
    noise: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """G (M, R) and V (M, M): given the regressors v ~ N(G r, V)."""
        M = len(self.noise)
        eye = torch.eye(M, dtype=self.noise.dtype)
        spread = torch.linalg.solve_triangular(
            eye - self.coefficients[:, :M], eye, upper=False, unitriangular=True
        )
        covariance = spread @ self.noise @ spread.mT
        return spread @ self.coefficients[:, M:], (covariance + covariance.mT) / 2


def exact(program: Program) -> bool:
    """Whether every latent is linear-Gaussian and no guide is written, so that the exact posterior stands for it.

    Example:
        >>> from ppl_gen import Linear, Normal, Spec
        >>> from ppl_gen.program.program import compile_spec
        >>> factors = Spec(model=dict(z=Normal(1, loc=0, scale=1), x=Normal(loc=Linear("z"))))
        >>> exact(compile_spec(factors, {"x": [[0.0, 1.0], [1.0, 3.0]]}))
        True

    """
    return obstacle(program) is None


def obstacle(program: Program) -> str | None:
    """Why the posterior of the continuous latents has no closed form here, or None."""
    if not program.continuous:
        return "no latent is continuous"
    if program.spec.guide is not None:
        return "a guide is written for it, which SVI fits"
    try:
        system_of(program)
    except NotLinearError as reason:
        return str(reason)
    return None


def system_of(program: Program) -> System:
    """The equations of a program; NotLinearError where it has others."""
    draws, schema = program.generative.draws, program.schema
    for name, draw in draws.items():
        if not isinstance(draw.node, Normal | MultivariateNormal):
            raise NotLinearError(f"{name} is {draw.node.family}, not normal")
    if any(True for _ in program.priors):
        raise NotLinearError("parameters have priors")
    keys = [slot.layer for draw in draws.values() for slot in draw.slots.values()]
    if len({*keys}) < len(keys):
        raise NotLinearError("parameters are shared by name")
    places, start = dict[str, slice](), 0
    for name, draw in draws.items():
        places[name] = slice(start, start + draw.sizes.width)
        start += draw.sizes.width
    levels: dict[str, int | None] = {}
    for name in schema.roles.inputs:
        levels[name] = schema.k.get(name)
        width = (levels[name] or 2) - 1 if name in schema.k else schema.dims[name]
        places[name] = slice(start, start + width)
        start += width
    return System(
        equations=tuple(_equation(program, draw, places, start) for draw in draws.values()),
        regressors=tuple(levels.items()),
        widths=tuple(places[name].stop - places[name].start for name in levels),
        observed=tuple(name for name in draws if name in schema.roles.observed),
        latent=tuple(name for name in draws if name not in schema.roles.observed),
    )


def _equation(program: Program, draw: Draw, places: Mapping[str, slice], constant: int) -> Equation:
    weights: list[tuple[str, tuple[int, ...]]] = []
    biases: list[str] = []
    learned: list[str] = []
    slot = draw.slots["loc"]
    if getattr(slot.term, "transform", None) not in (None, "identity"):
        raise NotLinearError(f"{draw.name}.loc = {slot.term} is transformed")
    for path, layer in _parts(program.generative.layers[slot.layer], f"generative.layers.{slot.layer}"):
        if isinstance(layer, LinearLayer) and not layer.lookup.names and layer.own == (draw.sizes.width,):
            weights.append((f"{path}.weight", _entering(draw, layer, places)))
            biases.append(f"{path}.bias")
            learned += [f"{path}.bias"] * layer.free_bias
        elif isinstance(layer, Table) and _plain(layer, draw.sizes.width):
            biases.append(f"{path}.table")
            learned.append(f"{path}.table")
        elif isinstance(layer, Constant) and not layer.n_free:
            biases.append(f"{path}.value")
        else:
            raise NotLinearError(f"{draw.name}.loc = {slot.term} is not linear in the latents")
    entering = [place for _, own in weights for place in own]
    if len({*entering}) < len(entering) or len(learned) > 1:
        raise NotLinearError(f"{draw.name}.loc = {slot.term} has a name twice")
    noise, spread, other = _noise(program, draw)
    own = places[draw.name]
    assert own.stop <= constant
    return Equation(
        draw.name, own, tuple(weights), tuple(biases), learned[0] if learned else None, noise, spread, other
    )


def _parts(layer: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(layer, SumLayer):
        for i, part in enumerate(layer.terms):
            yield f"{path}.terms.{i}", part
    else:
        yield path, layer


def _plain(layer: Table, width: int) -> bool:
    return (
        not layer.lookup.names and not layer.contrast and not layer.ordered and layer.table.shape == (width,)
    )


def _entering(draw: Draw, layer: LinearLayer, places: Mapping[str, slice]) -> tuple[int, ...]:
    found: list[int] = []
    for name, parent in zip(layer.inputs.names, layer.inputs.parents, strict=True):
        if parent.kind not in ("real", "category") or name not in places or parent.holes:
            raise NotLinearError(f"{draw.name}.loc takes {name}, which is no real node or complete Input")
        own = places[name]
        found += range(own.start, own.stop)
    return tuple(found)


def _noise(program: Program, draw: Draw) -> tuple[str, str, Slot]:
    """The kind of a node's noise, where its numbers lie, and their constraint."""
    ((key, slot),) = [(key, slot) for key, slot in draw.slots.items() if key != "loc"]
    layer, path = program.generative.layers[slot.layer], f"generative.layers.{slot.layer}"
    if isinstance(layer, Constant) and not layer.n_free:
        return "fixed", f"{path}.value", slot
    simple = isinstance(layer, Table) and not layer.lookup.names
    if not simple or (key == "scale" and getattr(slot.term, "transform", None) not in (None, *POSITIVE)):
        raise NotLinearError(f"{draw.name}.{key} = {slot.term} is no free value, nor a number")
    if key != "scale":
        return "full", f"{path}.table", slot
    shared = state_width(layer) == 1 < draw.sizes.width
    return "shared" if shared else "each", f"{path}.table", slot


def state_width(layer: nn.Module) -> int:
    """The dimensions of a table."""
    return int(layer.table.shape[-1])  # type: ignore[index]
