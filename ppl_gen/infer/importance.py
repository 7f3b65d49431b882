"""log p(x) where a latent is continuous: importance weighting with the guide as the proposal (E3)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_gen.infer.elbo import TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import State
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program

CELLS = 5_000_000  # rows × draws × dimensions held at a time


def importance_log_likelihood(
    program: Program, state: State, rows: Mapping[str, Tensor], *, draws: int = 100, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Log (1/S) Σ_s p(x_d, z_s)/q(z_s | x_d) of each row, and its standard error: (N,), (N,).

    A lower bound on log p(x_d) in the mean (E3), tighter with every draw. The standard error is that of the
    mean weight, carried through the logarithm (delta method). Reference: Burda, Grosse & Salakhutdinov (2016).
    """
    n = len(next(iter(rows.values())))
    widest = max(draw.sizes.width for draw in program.generative.draws.values())
    step = max(1, CELLS // (draws * widest))
    values, errors = [], []
    pair = functional_pair(program, state)
    devices = [t.device for t in state.values() if t.is_cuda][:1]
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, n, step):
            block = {name: value[start : start + step] for name, value in rows.items()}
            log_w = TraceableELBO(num_particles=draws).log_weights(*pair, block)  # (S, N)
            value = log_w.logsumexp(0) - math.log(draws)
            relative = (log_w - value).exp()
            values.append(value)
            spread = relative.std(0, correction=1) if draws > 1 else torch.full_like(value, math.nan)
            errors.append(spread / math.sqrt(draws))
    return torch.cat(values), torch.cat(errors)
