"""Whether a model and a guide are what SVI takes, told in words before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.ascent_step import Rows
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.noise import TURN
from ppl_gen.infer.pyro_leaves import find_leaves
from ppl_gen.infer.pyro_pair import PyroPair, UserHalf, plainly
from ppl_gen.program.lowering import pyro_scope

PLATE = 'with pyro.plate("rows", n, dim=-1), n the length of the arrays given'
Traces = tuple[Any, Any]  # the guide's, the model's


def found_pair(model: UserHalf, guide: UserHalf, rows: Rows, algorithm: SVI, seed: int) -> PyroPair:
    """The pair with all that it computes with, found on the first rows; the caller's noise and store are left.

    Args:
        model: as of `fit_pyro`.
        guide: as of `fit_pyro`.
        rows: of the first minibatch.
        algorithm: what is asked of the pair.
        seed: of parameters that begin at random.

    Raises:
        FitError: they are not what SVI takes; the message says where, and what could be done.

    """
    n = len(next(iter(rows.values())))
    devices = [value.device for value in rows.values() if value.is_cuda][:1]
    with TURN, pyro_scope(validate=True), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        kept: list[Traces] = []

        def run() -> None:
            kept[:] = [traced(model, guide, rows, algorithm)]

        try:
            leaves, largest = find_leaves((model, guide), run, list(rows.values()))
            if n > 1:  # a number of rows that is written into them is found out
                traced(model, guide, {name: column[: n - 1] for name, column in rows.items()}, algorithm)
        except FitError:
            raise
        except (ValueError, RuntimeError) as error:
            raise FitError(f"Pyro refuses the model or the guide on the first {n} rows: {error}") from error
        guide_trace, model_trace = kept[0]
        enumerated = tuple(name for name, site in sites_of(model_trace) if "_enumerate_dim" in site["infer"])
        drawn = any("_enumerate_dim" not in site["infer"] for _, site in sites_of(guide_trace))
        pair = PyroPair(model, guide, leaves, drawn=drawn, width=largest // n + 1, enumerated=enumerated)
        _all_reached(pair, rows)
        problem = _not_side_by_side(pair, rows)
        pair.side_by_side = problem is None
    if problem is not None and algorithm.particles > 1:
        raise FitError(
            f"SVI: particles={algorithm.particles} are drawn side by side, on one axis more before that of the "
            f"rows, and the model or the guide does not take it: {problem}. Index axes from the end, or use "
            "particles=1"
        )
    return pair


def traced(model: UserHalf, guide: UserHalf, rows: Rows, algorithm: SVI) -> Traces:
    """The traces of guide and model on these rows, checked."""
    n = len(next(iter(rows.values())))
    enumerating = EnumMessenger(first_available_dim=-2)(plainly(guide))
    guide_trace = poutine.trace(enumerating).get_trace(dict(rows))
    for name, site in sites_of(guide_trace):
        if site["is_observed"]:
            raise FitError(
                f"the guide's {name!r} is observed: a guide draws latents; conditions and factors go into the "
                "model"
            )
    replayed = EnumMessenger()(poutine.replay(plainly(model), trace=guide_trace))
    model_trace = poutine.trace(replayed).get_trace(dict(rows))
    known, latent = dict(sites_of(model_trace)), dict(sites_of(guide_trace))
    for which, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, site in sites_of(trace):
            _in_the_plate(which, name, site, n)
            if site["infer"].get("enumerate") == "sequential":
                raise FitError(
                    f"the {which}'s {name!r} is enumerated sequentially: use infer={{'enumerate': 'parallel'}}"
                )
            weighed = site["scale"] != 1 or site["mask"] is not None
            if algorithm.kl == "analytic" and weighed and name in latent:
                raise FitError(
                    f"SVI: kl='analytic' knows nothing of the scale or mask at the {which}'s {name!r}: "
                    "use 'sampled'"
                )
    for name, site in latent.items():
        _a_latent(name, site, known)
    for name, site in known.items():
        if not (site["is_observed"] or name in latent or "_enumerate_dim" in site["infer"]):
            raise FitError(
                f"the model's {name!r} is neither observed nor in the guide: give it obs=, draw it in the guide, "
                "or, where it is discrete, mark it with infer={'enumerate': 'parallel'}"
            )
    axes = {site["infer"].get("_enumerate_dim") for site in (*known.values(), *latent.values())}
    for which, trace in (("guide", guide_trace), ("model", model_trace)):
        trace.compute_log_prob()
        for name, site in sites_of(trace):
            shape = tuple(site["log_prob"].shape)
            others = [axis for axis in range(-len(shape), -1) if shape[axis] > 1 and axis not in axes]
            if shape[-1:] != (n,) or others:
                raise FitError(
                    f"the {which}'s log-density of {name!r} has the shape {shape} for {n} rows, and one number a "
                    "row is needed: declare the other axes with .to_event(…)"
                )
    return guide_trace, model_trace


def sites_of(trace: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The random sites of a trace, in its order."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample":
            yield name, site


def _in_the_plate(which: str, name: str, site: dict[str, Any], n: int) -> None:
    frames = site["cond_indep_stack"]
    where = f"the {which}'s {name!r}"
    if not frames:
        raise FitError(f"{where} is outside a plate over the rows, and each row needs its own: {PLATE}")
    if len(frames) > 1 or frames[0].dim != -1:
        listed = ", ".join(f"{frame.name!r} at dim={frame.dim}" for frame in frames)
        raise FitError(
            f"{where} is in the plates {listed}; there is to be one, over the rows: {PLATE}. Other axes go into "
            "the distribution, by .to_event(…)"
        )
    if frames[0].full_size != frames[0].size:
        raise FitError(
            f"{where} is in a plate that subsamples, and the rows are a minibatch already: {PLATE}"
        )
    if frames[0].size != n:
        raise FitError(f"{where} is in a plate of {frames[0].size} where {n} rows are given: {PLATE}")


def _a_latent(name: str, site: dict[str, Any], known: dict[str, dict[str, Any]]) -> None:
    """One site of the guide."""
    where = f"the guide's {name!r}"
    if name not in known:
        raise FitError(f"{where} is not in the model, which has {', '.join(map(repr, known))}")
    if known[name]["is_observed"]:
        raise FitError(f"{where} is observed in the model: a guide draws what the model does not observe")
    if not getattr(site["fn"], "has_rsample", False) and "_enumerate_dim" not in site["infer"]:
        raise FitError(
            f"{where} is drawn without a gradient ({type(site['fn']).__name__}): mark it with "
            "infer={'enumerate': 'parallel'} if it is discrete, or take a reparameterised distribution"
        )


def _all_reached(pair: PyroPair, rows: Rows) -> None:
    """Refuse parameters that the objective does not depend on."""
    state = {name: value.requires_grad_() for name, value in pair.parameters().items()}
    with pair.at(state | pair.buffers()) as halves:
        try:
            loss = TraceableELBO(1).per_row(*halves, dict(rows)).sum()
            found = torch.autograd.grad(loss, list(state.values()), allow_unused=True) if state else ()
        except (ValueError, RuntimeError) as error:
            raise FitError(f"Pyro refuses the model or the guide on the first rows: {error}") from error
    lost = [name for name, gradient in zip(state, found, strict=True) if gradient is None]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise FitError(
            f"the parameter {lost[0]!r}{more} is never reached: the bound does not depend on it. Use it, remove "
            "it, or freeze it with requires_grad_(False)"
        )


def _not_side_by_side(pair: PyroPair, rows: Rows) -> str | None:
    """Why several draws of a row cannot be taken at once; None where they can."""
    n = len(next(iter(rows.values())))
    with torch.no_grad(), pair.at(pair.parameters() | pair.buffers()) as halves:
        try:
            found: Tensor = TraceableELBO(3).log_weights(*halves, dict(rows))
        except (ValueError, RuntimeError, IndexError) as error:
            return str(error).strip().splitlines()[0]
    return (
        None if tuple(found.shape) == (3, n) else f"3 draws of {n} rows have densities {tuple(found.shape)}"
    )
