"""Where a step became non-finite: its batch run again as Pyro has it, site by site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.ascent import Ascent
from ppl_gen.infer.ascent_step import WEIGHTS, Rows, gradient_step
from ppl_gen.infer.elbo import Sites, TraceableELBO
from ppl_gen.infer.enumeration import State
from ppl_gen.infer.pair import Pair, Which
from ppl_gen.program.lowering import pyro_scope


def first_non_finite(ascent: Ascent, pair: Pair, rows: Rows, algorithm: SVI) -> str:
    """What is not finite first in a step on these rows, at the parameters and the noise of now: a clause.

    The guide's sites come before the model's, each with the ranges of its parameters and of its parents' values;
    after them the priors, and then the gradient, parameter by parameter.
    """
    state = ascent.state()
    data = {name: column for name, column in rows.items() if name != WEIGHTS}
    drawn = _Drawn()
    try:
        with (
            pyro_scope(),
            torch.no_grad(),
            torch.random.fork_rng(devices=_devices(pair)),
            drawn,
            pair.at(state) as halves,
        ):
            sites = TraceableELBO(algorithm.particles).sites(*halves, data)
    except (ValueError, RuntimeError) as error:  # as a Cholesky factor that does not exist
        last = f" after {drawn.names[-1]!r} was drawn" if drawn.names else ""
        return f"Pyro fails{last}: {str(error).splitlines()[0]}"
    values = data | drawn.values
    with torch.no_grad():
        found = next(_blamed(pair, state, sites, values), None)
    if found is not None:
        return found
    with torch.no_grad():
        log_prior = pair.log_prior(state)
    if log_prior is not None and not bool(torch.isfinite(log_prior)):
        return "the log-density of the parameters' priors is not finite"
    return _gradient(ascent, pair, rows, algorithm)


class _Drawn(Messenger):
    """Keeps each site's value, the guide's first."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    @property
    def names(self) -> list[str]:
        return list(self.values)

    def _pyro_post_sample(self, message: dict[str, Any]) -> None:
        if isinstance(message["value"], Tensor) and type(message["fn"]).__name__ != "_Subsample":
            self.values.setdefault(message["name"], message["value"])


def _blamed(pair: Pair, state: State, sites: Sites, values: Mapping[str, Tensor]) -> Iterator[str]:
    """A clause for each site whose draw or density is not finite, in the order they are run."""
    halves: tuple[tuple[Which, dict[str, Tensor], dict[str, Any]], ...] = (
        ("guide", sites.q, sites.q_laws),
        ("model", sites.p, sites.p_laws),
    )
    for which, densities, laws in halves:
        for name, density in densities.items():
            value, log_p = values.get(name), torch.isfinite(density)
            if value is not None and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                what = f"the {which}'s draws of {name!r} are not finite"
            elif not bool(log_p.all()):
                bad = int((~log_p).sum())
                what = (
                    f"the {which}'s log-density of {name!r} is not finite at {bad} of {log_p.numel()} values"
                )
            else:
                continue
            around = pair.around(which, name, laws[name], state, values)
            if around is None:
                yield what
                continue
            own = {} if value is None else {name: value}
            yield "; ".join([what, *(f"{key} {spread(tensor)}" for key, tensor in (around | own).items())])


def spread(tensor: Tensor) -> str:
    """The range of a tensor's finite numbers, and how many are none.

    Example:
        >>> spread(torch.tensor([0.5, float("nan"), -2.0]))
        'from -2 to 0.5, and 1 not finite'

    """
    finite = tensor[torch.isfinite(tensor)].double()
    lost = tensor.numel() - finite.numel()
    if not finite.numel():
        return "nowhere finite"
    return f"from {float(finite.min()):.4g} to {float(finite.max()):.4g}" + f", and {lost} not finite" * bool(
        lost
    )


def _gradient(ascent: Ascent, pair: Pair, rows: Rows, algorithm: SVI) -> str:
    """The first parameter whose gradient is not finite."""
    step = gradient_step(pair, ascent.layout, algorithm, ascent.n_units)
    try:
        with pyro_scope():
            gradient, _ = step(ascent.blocks, ascent.buffers, rows, ascent.knobs, ascent.centring.means)
    except (ValueError, RuntimeError) as error:
        return f"all densities are finite, their gradients fail: {str(error).splitlines()[0]}"
    values = ascent.layout.of_blocks(ascent.blocks)
    for path, own in ascent.layout.of_blocks(gradient).items():
        if not bool(torch.isfinite(own).all()):
            return f"all densities are finite, the gradient of {path!r} is not; its values {spread(values[path])}"
    return "every density and gradient is finite where the batch is run eagerly: their sum overflows"


def _devices(pair: Pair) -> list[torch.device]:
    return [pair.device] if pair.device.type == "cuda" else []
