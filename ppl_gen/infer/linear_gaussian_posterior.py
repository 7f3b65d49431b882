"""What a linear-Gaussian model says of rows: log p(x), and the posterior of all that is unseen (E1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppl_gen.data.stream import blocks_of
from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer.enumeration import Rows, State
from ppl_gen.infer.linear_gaussian import Joint, System, system_of
from ppl_gen.infer.linear_gaussian_numbers import joint_of
from ppl_gen.infer.linear_gaussian_rows import Units, side_by_side
from ppl_gen.program.constraints import pack_tril
from ppl_gen.program.layers import LinearLayer
from ppl_gen.program.marks import seen_key
from ppl_gen.program.program import Program

ROWS = 16_384  # at a time


class NoClosedFormError(FitError):
    """The covariance of the observed columns cannot be factored in float64, so far are the parameters from them."""


@dataclass(frozen=True)
class Posterior:
    """What rows with one pattern of seen cells say of all random nodes, side by side in model order.

    Args:
        rows: which rows they are, (n,).
        log_density: log p(x_d), (n,).
        mean: of every node's every dimension, seen ones as they are, in the data's units: (n, M).
        covariance: the same for all of the rows, 0 where a cell is seen: (M, M).

    """

    rows: Tensor
    log_density: Tensor
    mean: Tensor
    covariance: Tensor


def posteriors(program: Program, state: State, rows: Rows) -> Iterator[Posterior]:
    """The posterior of some rows, pattern by pattern; differentiable in the state.

    Args:
        program: as `linear_gaussian.exact` has it.
        state: its parameters.
        rows: as `Program.tensors` gives them; "x.seen" marks seen cells.

    Raises:
        NoClosedFormError: the parameters' covariance of the columns cannot be factored; it names a column.

    """
    system = system_of(program)
    units = Units.of(system, program.schema)
    joint = joint_of(system, state, units)
    mean, covariance = joint.moments()
    observed, M = system.places(system.observed), system.size
    arrays = {name: rows[name].detach().cpu().numpy() for name in rows if "." not in name}
    together = torch.from_numpy(side_by_side(system, arrays, units))
    D = len(observed)
    values, given = together[:, :D], together[:, D:]
    seen = _seen(system, rows, len(together))
    patterns, inverse = torch.unique(seen, dim=0, return_inverse=True)
    logs = units.unit.log()
    for i, pattern in enumerate(patterns):
        own = torch.nonzero(inverse == i).flatten()
        cells = observed[torch.nonzero(pattern).flatten()]
        x, fixed = values[own][:, pattern > 0], given[own] @ mean.mT  # (n, d), (n, M)
        factor, failed = torch.linalg.cholesky_ex(covariance[cells[:, None], cells])
        if bool(failed) or not bool(factor.isfinite().all()):
            raise _out_of_reach(program, system, covariance)
        rest = torch.linalg.solve_triangular(factor, (x - fixed[:, cells]).mT, upper=False)  # (d, n)
        across = torch.linalg.solve_triangular(factor, covariance[cells], upper=False)  # (d, M)
        log_density = -0.5 * (rest**2).sum(0) - factor.diagonal().log().sum() - logs[cells].sum()
        middle = (fixed + rest.mT @ across).index_copy(1, cells, x)
        left = covariance - across.mT @ across
        unknown = torch.ones(M, dtype=torch.float64)
        unknown[cells] = 0.0
        unit, centre = units.unit[:M], units.centre[:M]
        yield Posterior(
            own,
            log_density - 0.5 * len(cells) * math.log(2 * math.pi),
            middle * unit + centre,
            left * unknown * unknown[:, None] * unit * unit[:, None],
        )


def _out_of_reach(program: Program, system: System, covariance: Tensor) -> NoClosedFormError:
    """What is wrong with a covariance, in units, that cannot be factored: the column it says most of."""
    schema, observed = program.schema, system.places(system.observed)
    columns = [(name, column) for name in system.observed for column in schema.columns[name]]
    spreads = [sd for name in system.observed for sd in schema.spread[name]]
    ratio = covariance.detach().diagonal()[observed].sqrt()
    off = ratio.log().abs().nan_to_num(nan=math.inf, posinf=math.inf)
    worst = int(off.argmax())
    name, column = columns[worst]
    beside = (
        f"{float(ratio[worst]):.3g} times"
        if bool(ratio[worst].isfinite())
        else "beyond floating point beside"
    )
    return NoClosedFormError(
        "log p(x) has no closed form at these parameters that float64 could hold: the standard deviation they give "
        f"column {column!r} of {name!r} is {beside} the one it has ({spreads[worst]:.4g}). Centre and scale the "
        "columns, or let EM fit them"
    )


def log_densities(program: Program, state: State, rows: Rows) -> Tensor:
    """Log p(x_d) of each row, (N,), every latent and missing cell integrated out.

    Example:
        >>> from ppl_gen import Linear, Normal, Spec
        >>> from ppl_gen.program.program import compile_spec
        >>> spec = Spec(model=dict(z=Normal(1, loc=0, scale=1), x=Normal(2, loc=Linear("z"), scale=1)))
        >>> program = compile_spec(spec, {"x": [[0.0, 1.0], [2.0, 1.0]]}, dtype=torch.float64)
        >>> state = {path: torch.zeros_like(value) for path, value in program.state_dict().items()}
        >>> log_densities(program, state, {"x": torch.zeros(1, 2)})  # two standard normals at 0
        tensor([-1.8379], dtype=torch.float64)

    """
    parts = list(posteriors(program, state, rows))
    order = torch.cat([part.rows for part in parts]).argsort()
    return torch.cat([part.log_density for part in parts])[order]


def latent_means(program: Program, state: State, rows: Rows) -> Tensor:
    """E[z | x_d] of the latents side by side, in model order: (N, sum of their dims)."""
    system = system_of(program)
    parts = list(posteriors(program, state, rows))
    order = torch.cat([part.rows for part in parts]).argsort()
    return torch.cat([part.mean for part in parts])[order][:, system.places(system.latent)]


def mean_gradient(program: Program, state: State, table: Table) -> dict[str, Tensor]:
    """The gradient of the mean of log p(x_d) over all rows, by their weights, by path of the model's parameters.

    It is 0 at a maximum. Over the directions of a rotation of the latents it is 0 everywhere.
    """
    learned = [path for path, _ in program.named_parameters() if path.startswith("generative.")]
    leaves = {path: state[path].detach().double().cpu().requires_grad_() for path in learned}
    total = {path: torch.zeros_like(leaf) for path, leaf in leaves.items()}
    for block in blocks_of(table, ROWS):
        weights = torch.ones(block.n_rows) if block.weights is None else torch.from_numpy(block.weights)
        rows = program.tensors(block.arrays, table.holes)
        with torch.enable_grad():
            value = log_densities(program, state | leaves, rows) @ weights.double() / table.total
            found = torch.autograd.grad(value, list(leaves.values()))
        total = {path: total[path] + own for path, own in zip(leaves, found, strict=True)}
    return total


def completed(program: Program, state: State, rows: Rows, draws: int | None = None) -> dict[str, Tensor]:
    """The observed nodes, missing cells at E[x | seen] (N, D), or drawn given what is seen (S, N, D)."""
    system = system_of(program)
    n, M = len(next(iter(rows.values()))), system.size
    found = torch.zeros((draws or 1, n, M), dtype=torch.float64)
    for part in posteriors(program, state, rows):
        if draws is None:
            found[:, part.rows] = part.mean
            continue
        values, vectors = torch.linalg.eigh(part.covariance)
        noise = torch.randn(draws, len(part.rows), M, dtype=torch.float64)
        found[:, part.rows] = part.mean + noise * values.clamp(min=0).sqrt() @ vectors.mT
    named = {name: found[..., system.places((name,))] for name in system.observed}
    filled = {}
    for name, value in named.items():
        seen = rows.get(seen_key(name))
        own = rows[name].double().cpu()
        filled[name] = own.expand_as(value) if seen is None else torch.where(seen.cpu() > 0, own, value)
    return {name: value[0] if draws is None else value for name, value in filled.items()}


def _seen(system: System, rows: Rows, n: int) -> Tensor:
    """Marks of the seen cells of all observed nodes, (N, D)."""
    parts = []
    for e in system.equations:
        if e.name in system.observed:
            marks = rows.get(seen_key(e.name))
            whole = torch.ones(n, e.width, dtype=torch.float64)
            parts.append(whole if marks is None else marks.double().cpu().reshape(n, e.width))
    return torch.cat(parts, 1)


def with_guide(program: Program, system: System, state: State, joint: Joint, units: Units) -> State:
    """The derived guide at the posterior: exact where the latents of a node are independent given the rows.

    Where they are not, each has the mean of the posterior and the variance that is nearest to it in KL(q ‖ p).

    Args:
        program: its guide derived.
        system: its equations.
        state: where the guide's numbers go.
        joint: the model's, in units.
        units: see `joint`.

    """
    found = dict(state)
    mean, covariance = joint.moments()
    widths = dict(zip([name for name, _ in system.regressors], system.widths, strict=True))
    for name, draw in program.recognition.draws.items():
        for key, slot in draw.slots.items():
            layer, path = program.recognition.layers[slot.layer], f"recognition.layers.{slot.layer}"
            known = {*widths, *(e.name for e in system.equations)}
            if not isinstance(layer, LinearLayer) or not known.issuperset(layer.inputs.names):
                continue  # a network, as for rows with holes: it cannot hold the posterior, and is left alone
            read = [parent for parent in layer.inputs.names if parent not in widths]
            own, cells = system.places((name,)), system.places(tuple(read))
            gain, left = _conditional(covariance, own, cells)
            weight, bias = torch.zeros_like(state[f"{path}.weight"]), torch.zeros_like(state[f"{path}.bias"])
            if key == "loc":
                weight, bias = _head(layer, system, units, gain, (mean[own] - gain @ mean[cells], widths))
            elif slot.constraint.name == "lower_cholesky":
                bias = pack_tril(torch.linalg.cholesky(left))
            else:
                bias = slot.constraint.predictor(1 / torch.linalg.inv(left).diagonal().sqrt())
            found[f"{path}.weight"], found[f"{path}.bias"] = weight.to(bias), bias
    return {path: value.reshape(state[path].shape).to(state[path]) for path, value in found.items()}


def _conditional(covariance: Tensor, own: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """How some variables' mean depends on others', and their covariance given those."""
    factor = torch.linalg.cholesky(covariance[cells[:, None], cells])
    across = covariance[cells[:, None], own]
    gain = torch.cholesky_solve(across, factor).mT
    left = covariance[own[:, None], own] - gain @ across
    return gain, (left + left.mT) / 2


def _head(
    layer: LinearLayer,
    system: System,
    units: Units,
    gain: Tensor,
    rest: tuple[Tensor, Mapping[str, int]],
) -> tuple[Tensor, Tensor]:
    """Weight and bias of gain · (cells in units) + given · (regressors in units), for columns as they are."""
    given, widths = rest
    bias, parts, at = given[:, -1].clone(), [], 0
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    for name, parent in zip(layer.inputs.names, layer.inputs.parents, strict=True):
        if name in widths:
            places = torch.arange(starts[name], starts[name] + widths[name])
            own, where = given[:, places], places + system.size
        else:
            where = system.places((name,))
            own = gain[:, at : at + len(where)]
            at += len(where)
        per = own / units.unit[where]
        parts.append(per)
        if parent.holes:  # beside its columns, which of them are seen
            parts.append(-per * units.centre[where])
        else:
            bias = bias - per @ units.centre[where]
    return torch.cat(parts, 1), bias
