"""A fitted pair of the user's own against Pyro's own ELBO, which reads the modules and the store as they are."""

from __future__ import annotations

import math
import warnings

import pyro
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from ppl_gen.certify.certificate import Certificate, Line
from ppl_gen.infer.ascent_step import Rows
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.noise import TURN
from ppl_gen.infer.pyro_pair import PyroPair
from ppl_gen.program.lowering import pyro_scope

ROWS = 1_000  # that the two are compared on
ROUNDINGS = (
    8.0  # of each addend: its own logarithms and exponentials, which the two may take in another order
)


def certify_pair(pair: PyroPair, state: State, rows: Rows, seed: int) -> Certificate:
    """One line: our bound at the fitted parameters equals Pyro's at the same seed, from the same draws.

    Ours puts the parameters in the place of the tensors that the functions read. Pyro's calls the functions
    plainly, on the modules' own fitted weights. Both add up the same addends: the limit is what rounding may
    do to sums of them, pairwise: (log2 n + 8) ε Σ |addend|.

    Args:
        pair: what was fitted, its parameters loaded.
        state: those parameters.
        rows: of the data; the first 1 000 are taken.
        seed: of the draws.

    """
    some = {name: column[:ROWS] for name, column in rows.items()}
    n = len(next(iter(some.values())))
    devices = [pair.device] if pair.device.type == "cuda" else []
    enumerated = bool(pair.enumerated)
    with TURN, pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        with pair.at(state) as halves:
            ours = float(TraceableELBO().per_row(*halves, some).double().sum())
        torch.manual_seed(seed)
        with pair.at(state) as halves:
            sites = TraceableELBO().sites(*halves, some)
        size = sum(float(own.double().abs().sum()) for own in (*sites.p.values(), *sites.q.values()))
        torch.manual_seed(seed)
        stock = TraceEnum_ELBO(max_plate_nesting=1) if enumerated else Trace_ELBO()
        with pair.stored(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pyro's hints on how to write models
            theirs = -float(stock.loss(pair.model, pair.guide, dict(some)))
    coarsest = next((value.dtype for value in state.values()), torch.float32)
    limit = (math.log2(n + 1) + ROUNDINGS) * torch.finfo(coarsest).eps * size
    if not math.isfinite(ours) and not math.isfinite(theirs):
        return Certificate(
            (Line("pyro", None, math.nan, None, "the bound is not finite at these parameters"),)
        )
    apart = abs(ours - theirs)
    name = type(stock).__name__
    sampled = f" of {n} rows" if n > 1 else " of one row"
    text = (
        f"the bound{sampled} at seed {seed} is {ours:.6g}, and {theirs:.6g} by Pyro {pyro.__version__}'s {name} "
        "on the fitted modules: apart by no more than rounding"
        if apart <= limit
        else f"the bound{sampled} at seed {seed} is {ours:.6g}, and Pyro's {name} on the fitted modules gives "
        f"{theirs:.6g}: the parameters were changed, or the functions depend on more than their parameters and rows"
    )
    return Certificate((Line("pyro", apart <= limit, apart, limit, text),))
