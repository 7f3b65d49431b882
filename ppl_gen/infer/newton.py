"""The M-step of any parameter that has no closed form: Newton's method on Q, by automatic differentiation.

Q(θ̃, θ) = Σ_d E[log p(x_d, z; θ)] under the posterior at θ̃ (F6) is a sum over rows, and so are its gradient and
Hessian at θ = θ̃: they are the statistics of this M-step. One step of Newton's method then climbs Q, and with it
the log-likelihood, whose gradient at θ̃ is the same (Fisher's identity). A full step may overshoot: whoever runs EM
halves it until the log-likelihood does not fall.

Reference: Lange (1995), A gradient algorithm locally equivalent to the EM algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_gen.infer.enumeration import State
from ppl_gen.infer.obstacles import m_step_obstacle
from ppl_gen.program.half import Draw
from ppl_gen.program.layers import MLPLayer, Table
from ppl_gen.program.program import Program

MOST_PARAMETERS = 300  # of one group: a Hessian of more is dearer than many gradients
LEAST_CURVATURE = 1e-7  # of the largest: directions that Q does not see stay where they are
FLAT = 1e-10  # curvature and promise a row of a direction that leads to infinity, as log-odds of certainty do
NOISE = (
    1e-16  # nats a row that all other directions promise when they have arrived: beyond, rounding moves them
)
TAKEN_ALONG = 0.01  # share of such a direction from which a parameter goes with it
UNBOUNDED = "the data do not bound"  # how a note of such directions begins
LONGEST = 1.0  # nats a row that a step may promise, lest it leave where the quadratic is any guide


@dataclass(frozen=True)
class Group:
    """Nodes that are maximised together, because they share parameters or one of them has no closed form."""

    sites: tuple[str, ...]
    paths: tuple[str, ...]
    size: int
    network: bool = False

    @property
    def large(self) -> bool:
        """Whether its M-step is that of `networks`: no Hessian is wanted of so many numbers, or of a network's."""
        return self.network or self.size > MOST_PARAMETERS

    @property
    def name(self) -> str:
        """Its key among the statistics: no node can be called so."""
        return " + ".join(("Newton", *self.sites))


def groups(program: Program) -> tuple[Group, ...]:
    """The nodes without a closed form, those that share parameters side by side."""
    used = {name: _layers_of(program, draw) for name, draw in program.generative.draws.items()}
    joined: list[list[str]] = []
    for name, layers in used.items():
        linked = [group for group in joined if any(layers & used[other] for other in group)]
        joined = [group for group in joined if group not in linked]
        joined.append([*(other for group in linked for other in group), name])
    draws = program.generative.draws
    learned = dict(program.named_parameters())
    found = []
    for names in joined:
        layers = set().union(*(used[name] for name in names))
        paths = tuple(p for p in learned if any(p.startswith(f"generative.layers.{key}.") for key in layers))
        needed = len(names) > 1 or m_step_obstacle(program, draws[names[0]]) is not None
        if needed and paths:
            size = sum(learned[path].numel() for path in paths)
            network = _has_network(program, layers)
            found.append(Group(tuple(names), paths, size, network))
    return tuple(found)


def small_groups(program: Program) -> tuple[Group, ...]:
    """The groups that Newton's method maximises."""
    return tuple(group for group in groups(program) if not group.large)


def large_groups(program: Program) -> tuple[Group, ...]:
    """The groups that `networks` maximises."""
    return tuple(group for group in groups(program) if group.large)


def _has_network(program: Program, layers: Iterable[str]) -> bool:
    modules = (part for key in layers for part in program.generative.layers[key].modules())
    return any(isinstance(part, MLPLayer) for part in modules)


def _layers_of(program: Program, draw: Draw) -> set[str]:
    """The learned layers that a node's density depends on, named terms included."""
    half = program.generative
    found = {slot.layer for slot in draw.slots.values()}
    pending = [name for slot in draw.slots.values() for name in slot.term.parents()]
    while pending:
        name = pending.pop()
        if name in half.terms:
            found.add(f"{name}:")
            pending.extend(half.terms[name].parents())
    return {key for key in found if key in half.layers and any(True for _ in half.layers[key].parameters())}


def statistics(
    program: Program, group: Group, state: State, values: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Value, gradient (P,) and Hessian (P, P) of the group's part of Q, and the rows behind them.

    Args:
        program: the model.
        group: P parameters.
        state: where to differentiate.
        values: of all nodes, enumerated ones at each of theirs.
        expected: by site the posterior probability of each entry of its log p, times the row's weight.

    """

    def q(flat: Tensor) -> Tensor:
        moved = {**state, **_parts(group, state, flat)}
        total = flat.new_zeros(())
        for name in group.sites:
            log_p = torch.func.functional_call(program, moved, ("density", name, values))
            total = total + (expected[name] * log_p).sum()
        return total

    flat = torch.cat([state[path].reshape(-1) for path in group.paths])
    gradient, hessian = _derivatives(q, flat)
    return {
        f"{group.name}.value": q(flat),
        f"{group.name}.gradient": gradient,
        f"{group.name}.hessian": hessian,
        f"{group.name}.count": expected[group.sites[0]].sum(),
    }


def _derivatives(function: Callable[[Tensor], Tensor], flat: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (P,) and Hessian (P, P) of a scalar function."""
    gradient = torch.func.grad(function)

    def curvature_along(direction: Tensor) -> Tensor:
        return torch.func.grad(lambda at: (gradient(at) * direction).sum())(flat)

    # Twice in reverse: forward derivatives make zeros that a recorded graph would keep as constants.
    directions = torch.eye(len(flat), dtype=flat.dtype, device=flat.device)
    return gradient(flat), torch.func.vmap(curvature_along)(directions)


def _of_priors(program: Program, group: Group, state: State) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the log-density of the priors: with those of Q, the posterior's."""

    def log_prior(flat: Tensor) -> Tensor:
        moved = {**state, **_parts(group, state, flat)}
        value: Tensor = torch.func.functional_call(program, moved, ("log_prior",))
        return value

    return _derivatives(log_prior, torch.cat([state[path].reshape(-1) for path in group.paths]))


def step(
    program: Program,
    group: Group,
    state: State,
    found: Mapping[str, Tensor],
    bounds: Mapping[str, tuple[Tensor, Tensor]],
) -> tuple[State, Tensor]:
    """One step of Newton's method, curvature made positive: the moved parameters, and whether they are regular.

    Parameters are first brought to unit curvature, so that their units do not matter.
    """
    gradient, hessian, count = (found[f"{group.name}.{key}"] for key in ("gradient", "hessian", "count"))
    if any(True for _ in program.priors):
        more = _of_priors(program, group, state)
        gradient, hessian = gradient + more[0], hessian + more[1]
    finite = gradient.isfinite().all() & hessian.isfinite().all()
    diagonal = hessian.diagonal().abs().sqrt()
    unit = torch.where(finite & (diagonal > 0), diagonal, 1.0)
    scaled = -hessian / (unit.unsqueeze(-1) * unit)
    eye = torch.eye(len(unit), dtype=unit.dtype, device=unit.device)
    curvature, axes = torch.linalg.eigh(torch.where(finite, scaled, eye))
    curvature = curvature.abs()
    curvature = curvature.clamp(min=LEAST_CURVATURE * curvature.amax().clamp(min=1e-300))
    rows = count.clamp(min=1e-300)
    along = axes.mT @ torch.where(finite, gradient / unit, 0.0)
    own = curvature / ((axes / unit.unsqueeze(-1)) ** 2).sum(
        0
    )  # along each axis, in the parameters' own units
    endless = (own < FLAT * rows) & (along**2 / curvature < FLAT * rows)
    along = torch.where(endless, 0.0, along)
    promised = (along**2 / curvature).sum() / rows
    along = torch.where(endless.any() & (promised < NOISE), 0.0, along)
    move = (axes @ (along / curvature)) / unit
    move = move * (LONGEST / promised.clamp(min=LONGEST)).sqrt()
    flat = torch.cat([state[path].reshape(-1) for path in group.paths])
    moved = _parts(group, state, flat + move)
    return moved, finite & regular(program, group, {**state, **moved}, bounds)


def unbounded(program: Program, found: Mapping[str, Tensor]) -> list[str]:
    """Where the likelihood no longer changes with some parameters, in words; `found` are one state's statistics."""
    words = []
    for group in small_groups(program):
        loose = int(_along_flat(-found[f"{group.name}.hessian"], found[f"{group.name}.count"]).sum())
        if loose:
            words.append(
                f"{UNBOUNDED} {loose} of {group.size} parameters of {' and '.join(group.sites)}: outcomes "
                "that the columns tell apart without error, in some rows or in all, a column of one value or one "
                "that others make up, or a class without rows"
            )
    return words


def _along_flat(information: Tensor, count: Tensor) -> Tensor:
    """Which parameters (P,) a direction takes along that Q (P, P) does not bend in.

    Quasi-separated rows leave every parameter some curvature: those that are not separated bend it. Only along a
    direction of weight and intercept together, in which these stay as they are, is there none.
    """
    if not bool(information.isfinite().all()):
        return torch.zeros(len(information), dtype=torch.bool)
    unit = information.diagonal().abs().sqrt()
    unit = torch.where(unit > 0, unit, 1.0)
    curvature, axes = torch.linalg.eigh(information / (unit.unsqueeze(-1) * unit))
    lengths = (axes / unit.unsqueeze(-1)) ** 2  # along each axis, in the parameters' own units
    flat = curvature.abs() / lengths.sum(0) < 10 * FLAT * count
    shares = lengths[:, flat] / lengths[:, flat].sum(0)
    return (shares > TAKEN_ALONG).any(1)


def _parts(group: Group, state: State, flat: Tensor) -> State:
    parts = flat.split([state[path].numel() for path in group.paths])
    return {path: part.reshape(state[path].shape) for path, part in zip(group.paths, parts, strict=True)}


def regular(
    program: Program, group: Group, state: State, bounds: Mapping[str, tuple[Tensor, Tensor]]
) -> Tensor:
    """Whether no variance of real columns, given a row's other columns, has collapsed below its floor."""
    sound = [torch.ones((), dtype=torch.bool, device=next(iter(state.values())).device)]
    for name in group.sites:
        for key, slot in program.generative.draws[name].slots.items():
            if not isinstance(program.generative.layers[slot.layer], Table):
                continue
            working = slot.constraint.working(state[f"generative.layers.{slot.layer}.table"])
            if key == "scale":
                sound.append((working**2 >= bounds[name][0].amin()).all())
            elif slot.constraint.name in ("covariance", "lower_cholesky"):
                sound.append((working.diagonal(dim1=-2, dim2=-1) ** 2 >= bounds[name][0]).all())
    return torch.stack(sound).all()


def mixed(groups: Sequence[Group], rows: Tensor, one: State, other: State) -> State:
    """The groups' parameters, those of `one` in the marked rows (R,), of `other` in the rest."""
    paths = [path for group in groups for path in group.paths]
    marks = {path: rows.reshape(-1, *(1,) * (one[path].ndim - 1)).to(one[path].device) for path in paths}
    return {path: torch.where(marks[path], one[path], other[path]) for path in paths}
