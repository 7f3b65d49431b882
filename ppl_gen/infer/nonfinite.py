"""Where a step became non-finite: its batch run again as Pyro has it, site by site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_gen.declare.scope import node_parents
from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.ascent import WEIGHTS, Ascent, Rows, gradient_step
from ppl_gen.infer.elbo import Sites, TraceableELBO
from ppl_gen.program.half import Half
from ppl_gen.program.lowering import pyro_scope
from ppl_gen.program.program import Program


def first_non_finite(ascent: Ascent, program: Program, rows: Rows, algorithm: SVI) -> str:
    """What is not finite first in a step on these rows, at the parameters and the noise of now: a clause.

    The guide's sites come before the model's, each with the ranges of its parameters and of its parents' values;
    after them the priors, and then the gradient, parameter by parameter.
    """
    program.load_state_dict(ascent.state())
    data = {name: column for name, column in rows.items() if name != WEIGHTS}
    drawn = _Drawn()
    try:
        with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=_devices(program)), drawn:
            sites = TraceableELBO(algorithm.particles).sites(program.model, program.guide, data)
    except (ValueError, RuntimeError) as error:  # as a Cholesky factor that does not exist
        last = f" after {drawn.names[-1]!r} was drawn" if drawn.names else ""
        return f"Pyro fails{last}: {str(error).splitlines()[0]}"
    values = data | drawn.values
    with torch.no_grad():
        found = next(_blamed(program, sites, values), None)
    if found is not None:
        return found
    if not bool(torch.isfinite(program.log_prior())):
        return "the log-density of the parameters' priors is not finite"
    return _gradient(ascent, program, rows, algorithm)


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


def _blamed(program: Program, sites: Sites, values: Mapping[str, Tensor]) -> Iterator[str]:
    """A clause for each site whose draw or density is not finite, in the order they are run."""
    halves: tuple[tuple[str, Half, dict[str, Tensor], Any], ...] = (
        ("guide's", program.recognition, sites.q, program.guide_spec),
        ("model's", program.generative, sites.p, program.spec.model),
    )
    for whose, half, densities, entries in halves:
        for name, density in densities.items():
            value, log_p = values.get(name), torch.isfinite(density)
            if value is not None and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                what = f"the {whose} draws of {name!r} are not finite"
            elif not bool(log_p.all()):
                bad = int((~log_p).sum())
                what = f"the {whose} log-density of {name!r} is not finite at {bad} of {log_p.numel()} values"
            else:
                continue
            if name not in half.draws:
                yield what
                continue
            working = {f"its {key}": tensor for key, tensor in half.working(name, dict(values)).items()}
            above = {own: values[own] for own in node_parents(entries, entries[name]) if own in values}
            own = {} if value is None else {name: value}
            yield "; ".join(
                [what, *(f"{key} {spread(tensor)}" for key, tensor in (working | above | own).items())]
            )


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


def _gradient(ascent: Ascent, program: Program, rows: Rows, algorithm: SVI) -> str:
    """The first parameter whose gradient is not finite."""
    step = gradient_step(program, ascent.layout, algorithm, len(next(iter(ascent.data.values()))))
    with pyro_scope():
        gradient, _ = step(ascent.flat, ascent.buffers, rows, ascent.knobs, ascent.centring.means)
    values = ascent.layout.unflatten(ascent.flat)
    for path, own in ascent.layout.unflatten(gradient).items():
        if not bool(torch.isfinite(own).all()):
            return f"all densities are finite, the gradient of {path!r} is not; its values {spread(values[path])}"
    return "every density and gradient is finite where the batch is run eagerly: their sum overflows"


def _devices(program: Program) -> list[torch.device]:
    return [program.device] if program.device.type == "cuda" else []
