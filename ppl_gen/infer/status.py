"""How a run of inference ended, and Ctrl-C."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType


class Status(Enum):
    """How a fit ended; the value is the message."""

    CONVERGED = (
        "converged: what is left of the log-likelihood's rise and of the parameters' way is within tolerance"
    )
    BOUNDARY = (
        "converged at the boundary of the parameter space: a probability at 0 or 1, a variance at its floor, or "
        "degrees of freedom at an end of their range, which the notes name; standard errors from curvature do not "
        "hold for those"
    )
    PLATEAU = (
        "stopped on a plateau: the log-likelihood rises no more, but the parameters still move, so that the data "
        "hardly tell them apart. Use fewer classes, or a simpler model"
    )
    MAX_STEPS = "stopped at max_steps before the tolerance was met; raise max_steps, or start from this fit"
    EPOCHS_DONE = (
        "all epochs done; whether the objective, SVI's ELBO or StepwiseEM's log-likelihood, has levelled off is "
        "for its history to say"
    )
    LEVELLED_OFF = (
        "levelled off: for as many epochs as `patience` says the ELBO has not risen beyond its own noise; the "
        "notes give the means, and the epoch whose parameters are kept"
    )
    OVERFITTING = (
        "stopped early: the ELBO of the held-out rows is falling; the parameters are those of the epoch at which "
        "it was highest, which the notes name"
    )
    INTERRUPTED = "interrupted; the parameters are those of the last finished step"
    COLLAPSED = (
        "every restart collapsed onto a singular component; the parameters are those of its last regular step. "
        "Use fewer classes, a tied, diagonal or spherical covariance, or more rows"
    )
    DIVERGED = (
        "the objective became non-finite; the parameters are those of before, all finite. "
        "Lower the learning rate, or scale the columns"
    )

    @property
    def converged(self) -> bool:
        """Whether the run ended at a maximum, inside the space or at its boundary, or SVI's ELBO levelled off."""
        return self in (Status.CONVERGED, Status.BOUNDARY, Status.LEVELLED_OFF)

    @property
    def brief(self) -> str:
        """The message's first clause: what happened, and not what to do.

        Example:
            >>> Status.PLATEAU.brief
            'stopped on a plateau'

        """
        return re.split("[:;]", self.value)[0]

    @property
    def usable(self) -> bool:
        """Whether the parameters are an answer at all."""
        return self not in (Status.COLLAPSED, Status.DIVERGED)


class Interrupt:
    """Becomes true when the user has asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a request to finish the step at hand; the second one acts at once.

    Outside the main thread, where signals cannot be caught, it does nothing.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.getsignal(signal.SIGINT)

    def request(signum: int, frame: FrameType | None) -> None:
        if interrupt.asked and callable(before):
            before(signum, frame)
        interrupt.asked = True

    signal.signal(signal.SIGINT, request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
