"""What a run of inference returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from ppl_gen.infer.enumeration import State
from ppl_gen.infer.status import Status


@dataclass(frozen=True)
class Mode:
    """One maximum that restarts reached.

    Args:
        log_likelihood: of the best restart that reached it, in nats.
        hits: restarts that were run to their end and arrived there, up to the order of the classes. Starts that
            were dropped after their short run are not counted anywhere.
        shares: of the classes in that restart, largest first.

    """

    log_likelihood: float
    hits: int
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Run:
    """Parameters, history and how it ended.

    Args:
        state: the program's parameters and buffers, by path.
        history: the objective after each step or epoch, in nats summed over rows: EM's log-likelihood at the
            points it took, SVI's ELBO.
        status: how it ended.
        modes: EM's maxima, the best first.
        restarts: starts that were run; `finished` of them to their end, the others pruned after a short run;
            `collapsed` of them ended at a singular component. `reseeded` counts starts drawn again for that.
        lowering: what executed the steps in the end.
        notes: what a reader of the fit should know, each a sentence.
        algorithm: "EM" or "SVI".
        evaluations: of the EM map by the best restart; more than the history has steps where extrapolations were
            refused.
        remaining: Aitken's estimate of the log-likelihood's rise still to come, in nats.
        floored: columns whose variance is held at its floor.
        held_out: the ELBO of SVI's held-out rows after each epoch, in nats summed over them.

    """

    state: State
    history: tuple[float, ...]
    status: Status
    modes: tuple[Mode, ...] = ()
    restarts: int = 1
    collapsed: int = 0
    lowering: str = "eager"
    notes: tuple[str, ...] = field(default=())
    algorithm: str = "EM"
    evaluations: int = 0
    remaining: float = float("nan")
    floored: tuple[str, ...] = ()
    finished: int = 1
    reseeded: int = 0
    held_out: tuple[float, ...] = ()
