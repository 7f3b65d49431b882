"""log p(x) where a latent is continuous: importance weighting with the guide as the proposal (E3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppl_gen.infer.elbo import TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import State
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

CELLS = 5_000_000  # rows × draws × dimensions held at a time
FEWEST_IN_TAIL = 5  # weights that a generalised Pareto law is fitted to


@dataclass(frozen=True)
class Weighted:
    """What S importance weights say of each row: (N,) each.

    Args:
        log_mean: log (1/S) Σ_s w_s, the estimate of log p(x_d).
        error: its standard error over the draws; NaN of a single draw.
        effective: the effective number of draws, (Σ w)²/Σ w².
        pareto_k: the shape k̂ of the largest weights' tail; NaN of fewer than 25 draws.

    """

    log_mean: Tensor
    error: Tensor
    effective: Tensor
    pareto_k: Tensor


def weighted(log_weights: Tensor) -> Weighted:
    """Estimate, error, effective draws and k̂ from log weights log p(x_d, z_s) − log q(z_s | x_d), (S, N).

    The standard error is that of the mean weight, carried through the logarithm (delta method). In the mean the
    estimate lies below log p(x_d), to first order by half the square of that error.

    Example:
        >>> found = weighted(torch.log(torch.tensor([[1.0], [1.0], [4.0]])))
        >>> round(float(found.log_mean.exp()), 6), round(float(found.effective), 6)  # 6/3 and 36/18
        (2.0, 2.0)

    """
    log_weights = log_weights.double()
    draws = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(draws)
    relative = (log_weights - log_mean).exp()
    spread = relative.std(0, correction=1) if draws > 1 else torch.full_like(log_mean, math.nan)
    return Weighted(
        log_mean,
        spread / math.sqrt(draws),
        draws / relative.square().mean(0),  # Σ w is S times the mean, which is 1 here
        pareto_k(log_weights),
    )


def pareto_k(log_weights: Tensor) -> Tensor:
    """The shape k̂ of a generalised Pareto law fitted to the largest of S weights, column by column: (N,).

    Moments of order 1/k̂ and above do not exist: from 0.7 on the mean weight, and its error, are unreliable at any
    S that can be paid for. The tail is the largest min(S/5, 3√S) weights; where they are all alike k̂ is 0.

    Args:
        log_weights: (S, N), in the sense of p/q: of 1/w the tail would be the wrong one, and look reassuring.

    Reference: Vehtari, Simpson, Gelman, Yao & Gabry (2024), JMLR 25(72); Zhang & Stephens (2009), Technometrics
    51(3), with the former's prior of weight 10 at k = 1/2.

    Example:
        >>> x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
        >>> pareto_k(0.25 * x**2) < 0.7, pareto_k(0.45 * x**2) > 0.7  # N(0, 2) and N(0, 10) by N(0, 1)
        (tensor([True]), tensor([True]))

    """
    log_weights = log_weights.double()
    draws = len(log_weights)
    size = math.ceil(min(draws / 5, 3 * math.sqrt(draws)))
    if size < FEWEST_IN_TAIL:
        return torch.full_like(log_weights[0], math.nan)
    top = log_weights.topk(size + 1, dim=0).values.flip(0)  # in ascending order
    top = (top - top[-1]).exp()
    tail = (top[1:] - top[0]).T  # what they are above the first that is not among them: (N, T)
    level = tail[:, -1] <= 16 * torch.finfo(tail.dtype).eps
    tail = tail.masked_fill(level[:, None], 1.0)
    # Zhang and Stephens' quadrature over b = −k/σ, between 1/the largest and what a quartile suggests.
    points = 30 + int(math.sqrt(size))
    steps = torch.arange(1, points + 1, dtype=tail.dtype, device=tail.device) - 0.5
    quartile = tail[:, int(size / 4 + 0.5) - 1].clamp(min=torch.finfo(tail.dtype).tiny)
    b = (1 - (points / steps).sqrt()) / (3 * quartile[:, None]) + 1 / tail[:, -1:]
    k = torch.log1p(-b[:, :, None] * tail[:, None]).mean(-1)  # (N, B)
    profile = size * ((-b / k).log() - k - 1)
    mean_b = (b * profile.nan_to_num(nan=-math.inf).softmax(-1)).sum(-1, keepdim=True)
    shape = torch.log1p(-mean_b * tail).mean(-1)
    return torch.where(level, 0.0, (size * shape + 5) / (size + 10))


def importance_log_likelihood(
    program: Program, state: State, rows: Mapping[str, Tensor], *, draws: int = 100, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Log (1/S) Σ_s p(x_d, z_s)/q(z_s | x_d) of each row, and its standard error: (N,), (N,).

    A lower bound on log p(x_d) in the mean (E3), tighter with every draw. Reference: Burda, Grosse &
    Salakhutdinov (2016).
    """
    _, value, error = bounds_and_log_likelihoods(program, state, rows, draws=draws, seed=seed)
    return value, error


def bounds_and_log_likelihoods(
    program: Program, state: State, rows: Mapping[str, Tensor], *, draws: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """LB_d of each row, the mean over draws; and, of the same draws, `importance_log_likelihood`: (N,) each."""
    n = len(next(iter(rows.values())))
    pair = functional_pair(program, state)
    devices = [t.device for t in state.values() if t.is_cuda][:1]
    found = []
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        size = cells_of_a_draw(program, state, rows)
        torch.manual_seed(seed)
        for start, stop, parts in blocks(n, draws, size):
            block = {name: value[start:stop] for name, value in rows.items()}
            drawn = [TraceableELBO(part).per_row_and_log_weights(*pair, block) for part in parts]
            bound = sum(own * part for (own, _), part in zip(drawn, parts, strict=True)) / draws
            log_w = torch.cat([own for _, own in drawn])
            told = weighted(log_w)
            found.append((bound, told.log_mean.to(log_w), told.error.to(log_w)))
    bounds, values, errors = (torch.cat(parts) for parts in zip(*found, strict=True))
    return bounds, values, errors


def blocks(n: int, draws: int, cells: int, at_once: int = CELLS) -> Iterator[tuple[int, int, list[int]]]:
    """Blocks of rows, first and last, with the numbers of draws to take together for each of them.

    Args:
        n: rows.
        draws: S.
        cells: what one draw of one row takes.
        at_once: what may be held at a time.

    Example:
        >>> list(blocks(5, 4, cells=10, at_once=100)), list(blocks(2, 25, cells=10, at_once=100))
        ([(0, 2, [4]), (2, 4, [4]), (4, 5, [4])], [(0, 1, [9, 8, 8]), (1, 2, [9, 8, 8])])

    """
    together = max(1, at_once // cells)
    step = max(1, together // draws)
    parts = math.ceil(draws / together) if step == 1 else 1
    shares = [draws // parts + (i < draws % parts) for i in range(parts)]
    for start in range(0, n, step):
        yield start, min(start + step, n), shares


def cells_of_a_draw(program: Program, state: State, rows: Mapping[str, Tensor]) -> int:
    """How many numbers the largest intermediate result takes for one draw of one row, by counting them.

    Draws are taken and put back; what does not grow with them, as weights, is not counted.
    """
    few, more = 2, 5
    pair, row = functional_pair(program, state), {name: value[:1] for name, value in rows.items()}
    devices = [t.device for t in state.values() if t.is_cuda][:1]
    counts = []
    for draws in (few, more):
        with torch.random.fork_rng(devices=devices), _Counting() as counting:
            TraceableELBO(draws).log_weights(*pair, row)
        counts.append(counting.sizes)
    if len(counts[0]) != len(counts[1]):
        return max(1, *counts[1]) // more + 1
    grown = ((large - small) / (more - few) for small, large in zip(*counts, strict=True))
    return math.ceil(max(1.0, *grown))


class _Counting(TorchFunctionMode):
    """Notes how many numbers each operation on tensors returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sizes.append(out.numel() if isinstance(out, Tensor) else 0)
        return out
