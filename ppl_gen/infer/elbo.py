"""The evidence lower bound, from Pyro's traces, in operations that can themselves be traced.

`Trace_ELBO` reads its loss with `.item()` and cannot be lowered. What changes here is that bookkeeping, and that
discrete sites are summed out exactly, as `TraceEnum_ELBO` does; the value at one seed is the stock one's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from ppl_gen.infer.enumeration import State, sum_out
from ppl_gen.program.program import Program

Half = Callable[..., Any]
NESTING = 1  # the plate over units; particles lie on the axis before it


class TraceableELBO(Trace_ELBO):
    """`Trace_ELBO` as a pure function of tensors, its discrete sites enumerated.

    LB_d = E_q[log p(x_d, z) − log q(z | x_d)] (F2), its expectation over continuous latents by S draws (F9.4)
    and over discrete ones by summation (E2).

    Args:
        num_particles: S, drawn side by side.

    Example:
        >>> import torch
        >>> from ppl_gen.program.program import compile_spec
        >>> rows = {"x": torch.randn(5, 3)}
        >>> program = compile_spec("vae", {"x": rows["x"].numpy()})
        >>> TraceableELBO().per_row(program.model, program.guide, rows).shape
        torch.Size([5])

    """

    def __init__(self, num_particles: int = 1) -> None:
        super().__init__(
            num_particles=num_particles, max_plate_nesting=NESTING, vectorize_particles=num_particles > 1
        )

    def per_row(self, model: Half, guide: Half, *args: Any, **kwargs: Any) -> Tensor:
        """LB_d of each row, the mean over particles: (N,)."""
        return self._bounds(*self._terms(model, guide, args, kwargs)).mean(0)

    def log_weights(self, model: Half, guide: Half, *args: Any, **kwargs: Any) -> Tensor:
        """Log p(x_d, z_s) − log q(z_s | x_d) of each draw, discrete latents summed out: (S, N)."""
        return self._ratios(*self._terms(model, guide, args, kwargs))

    def per_row_and_log_weights(
        self, model: Half, guide: Half, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """`per_row` and `log_weights` of the same draws: (N,), (S, N)."""
        terms = self._terms(model, guide, args, kwargs)
        return self._bounds(*terms).mean(0), self._ratios(*terms)

    def _bounds(self, log_p: Tensor, log_q: Tensor, weights: Tensor, axes: tuple[int, ...]) -> Tensor:
        bound = log_p - log_q
        if axes:
            bound = (weights.exp() * bound).sum(axes, keepdim=True)
        return bound.reshape(self.num_particles, -1)

    def _ratios(self, log_p: Tensor, log_q: Tensor, weights: Tensor, axes: tuple[int, ...]) -> Tensor:
        ratio = log_p - (log_q - weights)
        if axes:
            ratio = ratio.logsumexp(axes, keepdim=True)
        return ratio.reshape(self.num_particles, -1)

    def differentiable_loss(self, model: Half, guide: Half, *args: Any, **kwargs: Any) -> Tensor:
        """−Σ_d LB_d, with gradients."""
        return -self.per_row(model, guide, *args, **kwargs).sum()

    def loss(self, model: Half, guide: Half, *args: Any, **kwargs: Any) -> float:
        """−Σ_d LB_d."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def sites(self, model: Half, guide: Half, *args: Any, **kwargs: Any) -> Sites:
        """The random sites of both traces, the guide's draws replayed in the model."""
        if self.num_particles > 1:
            model, guide = self._vectorized_num_particles(model), self._vectorized_num_particles(guide)
        first = -1 - self.max_plate_nesting
        guide_trace = poutine.trace(EnumMessenger(first_available_dim=first)(guide)).get_trace(
            *args, **kwargs
        )
        replayed = EnumMessenger()(poutine.replay(model, trace=guide_trace))
        model_trace = poutine.trace(replayed).get_trace(*args, **kwargs)
        p, p_axes, p_laws = _log_probs(model_trace)
        q, q_axes, q_laws = _log_probs(guide_trace)
        return Sites(p, q, p_axes, q_axes, p_laws, q_laws)

    def _terms(
        self, model: Half, guide: Half, args: Any, kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Log p summed over the model's own discrete sites, log q, its discrete part, and that part's axes."""
        sites = self.sites(model, guide, *args, **kwargs)
        log_p = sum_out(list(sites.p.values()), sites.summed)
        zero = torch.zeros_like(log_p)
        log_q = reduce(add, sites.q.values(), zero)
        weights = reduce(add, (sites.q[name] for name in sites.q_axes), zero)
        log_p, log_q, weights = torch.broadcast_tensors(log_p, log_q, weights)
        return log_p, log_q, weights, tuple(sites.q_axes.values())


@dataclass(frozen=True)
class Sites:
    """The random sites of a model's and its guide's trace.

    Args:
        p: log-probabilities by site of the model, (…, N): particles and enumerated values on axes before the rows.
        q: the same of the guide; its sites are in `p` too.
        p_axes: the axis of each site that is enumerated, in the model or in the guide.
        q_axes: of those, the guide's.
        p_laws: the distributions.
        q_laws: the same of the guide.

    """

    p: dict[str, Tensor]
    q: dict[str, Tensor]
    p_axes: dict[str, int]
    q_axes: dict[str, int]
    p_laws: dict[str, Any]
    q_laws: dict[str, Any]

    @property
    def summed(self) -> list[int]:
        """The axes that the model sums out: of the discrete sites that the guide does not name."""
        return [axis for name, axis in self.p_axes.items() if name not in self.q]


def _log_probs(trace: Any) -> tuple[dict[str, Tensor], dict[str, int], dict[str, Any]]:
    """Each random site's log-probabilities, the axis of each enumerated one, and the distributions."""
    trace.compute_log_prob()
    sites = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }
    axes = {
        name: site["infer"]["_enumerate_dim"]
        for name, site in sites.items()
        if "_enumerate_dim" in site["infer"]
    }
    laws = {name: site["fn"] for name, site in sites.items()}
    return {name: site["log_prob"] for name, site in sites.items()}, axes, laws


def functional_pair(program: Program, state: State) -> tuple[Half, Half]:
    """The program's model and guide at other parameters: pure functions of `state` and the rows."""

    def half(which: str, rows: Mapping[str, Tensor]) -> Any:
        return torch.func.functional_call(program, state, (which, rows))

    return partial(half, "model"), partial(half, "guide")
