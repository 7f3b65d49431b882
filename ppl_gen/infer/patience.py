"""Early stopping that knows the ELBO to be noisy: means over windows of epochs against their standard error."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import fmean, variance
from typing import Any

from ppl_gen.infer.algorithms import SVI
from ppl_gen.infer.status import Status

ERRORS = 2.0  # standard errors up to which a difference of means is noise
LEVEL = 1e-6  # nats a row up to which a rise is none, however exactly it is known


@dataclass(frozen=True)
class Change:
    """The means of two windows of epochs, one after the other.

    Args:
        before: the earlier mean.
        after: the later one.
        error: the standard error of their difference, from the variances within the windows.

    Example:
        >>> Change.of([1.0, 3.0, 2.0, 2.0, 1.0, 3.0], window=3)
        Change(before=2.0, after=2.0, error=0.816496580927726)

    """

    before: float
    after: float
    error: float

    @staticmethod
    def of(values: list[float], window: int) -> Change | None:
        """Of the last two windows; None where there are not so many values, or one of them is not finite.

        A rise within a window counts as variance there, which makes the error the larger; a steady one is still
        told from noise, as its windows of w epochs lie √(6w) errors apart.
        """
        recent = values[-2 * window :]
        if len(recent) < 2 * window or not all(map(math.isfinite, recent)):
            return None
        first, second = recent[:window], recent[window:]
        error = math.sqrt((variance(first) + variance(second)) / window)
        return Change(fmean(first), fmean(second), error)

    def rises(self, least: float) -> bool:
        """Whether the rise is more than noise, and more than `least`."""
        return self.after - self.before > max(ERRORS * self.error, least)

    def falls(self, least: float) -> bool:
        """Whether the fall is more than noise, and more than `least`."""
        return self.before - self.after > max(ERRORS * self.error, least)


@dataclass
class Watch:
    """What a run's ELBO has done so far, on held-out rows where there are any: whether to go on, which is best.

    Epochs in which β warms up are not looked at: the objective is another one after each of their steps.

    Args:
        algorithm: with its patience, window, validation and warm_up.
        units: the rows the values are sums over, or their weights' sum.
        values: one an epoch.
        quiet: epochs in a row in which the ELBO has not risen.
        best: the highest value so far; without held-out rows, the highest mean of a window.
        best_epoch: the epoch of that, counted from 1; 0 before there is one.
        begun_again: whether that epoch was run again since, at a lower learning rate.

    """

    algorithm: SVI
    units: float
    values: list[float] = field(default_factory=list)
    quiet: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    begun_again: bool = False

    @staticmethod
    def wanted(algorithm: SVI) -> bool:
        """Whether an algorithm asks for anything that has to be watched."""
        return algorithm.patience is not None or algorithm.validation > 0

    def add(self, value: float) -> bool:
        """Take in the value of one more epoch; whether its parameters are the best so far."""
        self.values.append(value)
        seen, window = self._seen(), self.algorithm.window
        change = Change.of(seen, window)
        if change is not None:
            self.quiet = 0 if change.rises(LEVEL * self.units) else self.quiet + 1
        if self.algorithm.validation > 0:
            standing = value if seen else math.nan
        else:
            standing = fmean(seen[-window:]) if len(seen) >= window else math.nan
        if not standing > self.best:
            return False
        self.best, self.best_epoch, self.begun_again = standing, len(self.values), False
        return True

    def forget(self, done: int) -> None:
        """Take back the epochs after the first `done`, which are run again; a best one stays what it is."""
        del self.values[done:]
        self.quiet = 0
        self.begun_again |= self.best_epoch > done

    @property
    def verdict(self) -> Status | None:
        """How the run is to end; None: it goes on."""
        patience = self.algorithm.patience
        if patience is None or self.quiet < patience:
            return None
        change = Change.of(self._seen(), self.algorithm.window)
        falling = self.algorithm.validation > 0 and change is not None and change.falls(LEVEL * self.units)
        return Status.OVERFITTING if falling else Status.LEVELLED_OFF

    def notes(self, status: Status) -> list[str]:
        """Why the run stopped where it did, and whose parameters were kept: sentences."""
        said, rows = [], "of the held-out rows " if self.algorithm.validation > 0 else ""
        change = Change.of(self._seen(), self.algorithm.window)
        if status is self.verdict and change is not None:
            said.append(
                f"after {len(self.values)} epochs of {self.algorithm.epochs} the ELBO {rows}has the mean "
                f"{change.after:.6g} over the last {self.algorithm.window} and {change.before:.6g} over those "
                f"before; the difference has a standard error of {change.error:.2g}"
            )
        if 0 < self.best_epoch < len(self.values) or self.begun_again:
            whose = "the best" if rows else f"the last of the {self.algorithm.window} with the highest mean"
            told = f"the parameters are those of epoch {self.best_epoch}, {whose} {rows}".rstrip()
            said.append(f"{told}, before it was begun again" if self.begun_again else told)
        return said

    def memory(self) -> dict[str, Any]:
        """What has to be kept to go on later: `Watch(algorithm, units, **memory)`."""
        return {
            "values": list(self.values),
            "quiet": self.quiet,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "begun_again": self.begun_again,
        }

    def _seen(self) -> list[float]:
        return self.values[self.algorithm.warm_up :]
