"""EM and SVI as frozen values: what a person may choose about inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from ppl_gen.errors import FitError
from ppl_gen.program.lowering import LOWERINGS

INITS = ("k-means++", "random-rows", "random-responsibilities")
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class EM:
    """Expectation–maximisation (F5–F7) with enumerated discrete latents.

    Args:
        max_steps: evaluations of the EM map by one restart at most; without acceleration, steps.
        tol: a restart has converged when what a step adds to the log-likelihood, and Aitken's estimate of all that
            further steps would add, are both within this, in nats per row, and the parameters' way left is within
            its square root, in units of the data's spread, of probability, or of a scale's logarithm. None of it
            depends on the data's units.
        restarts: starts run side by side, the best one kept. A given start is run once.
        init: "k-means++", "random-rows" or "random-responsibilities"; parameters as
            {"x": {"loc": …}, …} on their natural scale; or another Fit. Where every observed node is
            categorical, hard starts get stuck, and the classes of a mixture of regressions are no clusters:
            there "k-means++" is taken as "random-responsibilities".
        short_steps: steps of every restart before all but the `keep` best are dropped.
        keep: restarts that are run to their end.
        accelerate: extrapolate the steps of slow restarts (SQUAREM), wherever that does not lower the
            log-likelihood.
        lowering: "eager", "traced" or "compiled"; "auto" traces.

    Raises FitError for a value outside its range. References: Dempster, Laird & Rubin (1977); Biernacki, Celeux &
    Govaert (2003), https://doi.org/10.1016/S0167-9473(02)00163-9, on short runs; Varadhan & Roland (2008).

    Example:
        >>> EM(restarts=3).keep
        10

    """

    max_steps: int = 2000
    tol: float = 1e-9
    restarts: int = 50
    init: Any = "k-means++"
    short_steps: int = 20
    keep: int = 10
    accelerate: bool = True
    lowering: str = "auto"

    def __post_init__(self) -> None:
        _whole("EM", "max_steps", self.max_steps, 1)
        for name in ("restarts", "short_steps", "keep"):
            _whole("EM", name, getattr(self, name), 1)
        if not isinstance(self.accelerate, bool):
            raise FitError(f"EM: accelerate must be True or False, not {self.accelerate!r}")
        _positive("EM", "tol", self.tol, zero=True)
        _choice("EM", "lowering", self.lowering, LOWERINGS)
        if isinstance(self.init, str):
            _choice("EM", "init", self.init, INITS)


@dataclass(frozen=True)
class SVI:
    """Stochastic variational inference on `Trace_ELBO` (F8–F11); discrete latents are summed out exactly.

    Args:
        epochs: passes over the rows.
        batch_size: rows of a minibatch; the last one of an epoch may be smaller.
        learning_rate: of the optimiser.
        particles: draws of z a row, C of F9.4.
        optimizer: the name of one of torch's, or a function from an iterable of tensors to one, as
            `lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)`; `learning_rate` goes to a named one.
        lowering: "eager", "traced" or "compiled"; "auto" compiles runs long enough to repay it.

    Raises FitError for a value outside its range. Reference: Kingma & Welling (2014).

    Example:
        >>> SVI(epochs=2).batch_size
        256

    """

    epochs: int = 50
    batch_size: int = 256
    learning_rate: float = 1e-3
    particles: int = 1
    optimizer: Any = "adam"
    lowering: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "particles"):
            _whole("SVI", name, getattr(self, name), 1)
        _positive("SVI", "learning_rate", self.learning_rate)
        _choice("SVI", "lowering", self.lowering, LOWERINGS)
        if isinstance(self.optimizer, str):
            _choice("SVI", "optimizer", self.optimizer, tuple(OPTIMIZERS))
        elif not callable(self.optimizer):
            raise FitError(f"SVI: optimizer must be a name or a function, not {self.optimizer!r}")


@dataclass(frozen=True)
class StepwiseEM:
    """EM in minibatches, for rows of which one pass is already long; every M-step has to be closed.

    The expected statistics, for a row on average, are kept as a running one: s ← (1 − γ_t) s + γ_t ŝ_batch with
    γ_t = (t + offset)^−decay, and an M-step follows every batch. What the second half of all batches said,
    every one counted alike, gives the parameters it ends with.

    Args:
        epochs: passes over the rows.
        batch_size: rows of a minibatch; the last one of an epoch counts as much less as it is smaller.
        decay: above 0.5 and at most 1; the smaller, the faster what was learned at first is forgotten.
        offset: from 0; the larger, the less the first batches move.
        restarts: starts tried, by EM on a sample of the rows.
        init: as for EM.
        lowering: as for EM.

    Raises FitError for a value outside its range. Reference: Cappé & Moulines (2009).

    Example:
        >>> StepwiseEM(epochs=1).decay
        0.6

    """

    epochs: int = 2
    batch_size: int = 4096
    decay: float = 0.6
    offset: float = 2.0
    restarts: int = 10
    init: Any = "k-means++"
    lowering: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "restarts"):
            _whole("StepwiseEM", name, getattr(self, name), 1)
        _positive("StepwiseEM", "decay", self.decay)
        if not 0.5 < self.decay <= 1:
            raise FitError(f"StepwiseEM: decay must be above 0.5 and at most 1, not {self.decay!r}")
        _positive("StepwiseEM", "offset", self.offset, zero=True)
        _choice("StepwiseEM", "lowering", self.lowering, LOWERINGS)
        if isinstance(self.init, str):
            _choice("StepwiseEM", "init", self.init, INITS)


Algorithm = EM | SVI | StepwiseEM
ALGORITHMS: dict[str, Callable[..., Algorithm]] = {"EM": EM, "SVI": SVI, "StepwiseEM": StepwiseEM}


def described(algorithm: Algorithm) -> dict[str, Any]:
    """An algorithm as JSON: its name and options; what is no plain value is named by its type."""
    options = {f.name: getattr(algorithm, f.name) for f in fields(algorithm)}
    plain = {
        key: value if isinstance(value, str | int | float) else f"<{type(value).__name__}>"
        for key, value in options.items()
    }
    return {"name": type(algorithm).__name__, **plain}


def _whole(owner: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FitError(f"{owner}: {name} must be a whole number from {least}, not {value!r}")


def _positive(owner: str, name: str, value: Any, zero: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value > 0 or (zero and value == 0)) or value == float("inf"):
        raise FitError(f"{owner}: {name} must be a positive number, not {value!r}")


def _choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise FitError(f"{owner}: {name} must be one of {', '.join(choices)}, not {value!r}")
