"""What a run of inference returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppl_gen.infer.enumeration import State
from ppl_gen.infer.status import Status


@dataclass(frozen=True)
class Mode:
    """One maximum that restarts reached: its log-likelihood in nats, how many reached it, its class shares."""

    log_likelihood: float
    hits: int
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """Parameters, history and how it ended.

    Args:
        state: the program's parameters and buffers, by path.
        history: the objective after each step or epoch, in nats summed over rows: EM's log-likelihood, SVI's
            ELBO.
        status: how it ended.
        modes: EM's maxima, the best first.
        restarts: starts that were run; `collapsed` of them became singular.
        lowering: what executed the steps in the end.
        notes: what a reader of the fit should know, each a sentence.

    """

    state: State
    history: tuple[float, ...]
    status: Status
    modes: tuple[Mode, ...] = ()
    restarts: int = 1
    collapsed: int = 0
    lowering: str = "eager"
    notes: tuple[str, ...] = field(default=())
