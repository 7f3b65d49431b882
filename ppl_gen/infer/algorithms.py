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


Optimizer = torch.optim.Optimizer
Scheduler = torch.optim.lr_scheduler.LRScheduler
# Epochs of the run → optimiser → torch's scheduler, one step of it an epoch.
SCHEDULES: dict[str, Callable[[int], Callable[[Optimizer], Scheduler]]] = {
    "cosine": lambda epochs: lambda own: torch.optim.lr_scheduler.CosineAnnealingLR(own, epochs),
    "linear": lambda epochs: lambda own: torch.optim.lr_scheduler.LinearLR(own, 1.0, 0.01, epochs),
    "exponential": lambda epochs: (
        lambda own: torch.optim.lr_scheduler.ExponentialLR(own, 0.01 ** (1 / epochs))
    ),
}
OBJECTIVES = ("elbo", "iwae")
KLS = ("sampled", "analytic")
ON_NAN = ("stop", "recover")


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
        lowering: "eager", "traced" or "compiled"; "auto" traces, and runs eagerly what cannot be recorded.

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
        lowering: "eager", "traced", "compiled", or on a CUDA device "captured": compiled, and launched as one CUDA
            graph; "auto" times the first steps, traced, and compiles the others where that repays itself; the log
            (at INFO) and `fit.run.lowering` tell. Compiled sums round in another order, and the clock decides:
            name one where every machine load is to give the same bits.
        objective: "elbo", or "iwae": the importance-weighted bound of `particles` draws (E3).
        kl: "sampled" as the deck's F9.4, or "analytic": in closed form where Pyro has one for the pair of
            families; the same expectation, a smaller variance.
        beta: what the Kullback–Leibler part of the ELBO counts (Higgins et al. 2017); 1 is the bound itself.
        warm_up: epochs over which β climbs to that from 0, step by step.
        free_bits: nats for a dimension of a latent below which its part of the bound draws no gradient
            (Kingma et al. 2016).
        clip_norm: the longest gradient of the mean bound over a batch, by its Euclidean norm; None: any.
        weight_decay: added to the gradient as this times the parameters, as torch's Adam does; a named
            optimizer gets it as its own `weight_decay`.
        schedule: of the learning rate, a step an epoch: "cosine" to 0, "linear" or "exponential" to a hundredth,
            or a function from an optimiser to one of torch's schedulers. Default: constant.
        on_nan: what follows a step whose bound or gradient is not finite, which moves nothing: "stop" ends the run;
            "recover" goes back to where the epoch with the highest ELBO so far began and halves the learning
            rate from there on, at most ten times in a run. Either way the notes name the first site that was
            not finite, with the ranges of its parameters and parents.
        patience: the run ends once the ELBO has not risen for this many epochs in a row: the mean of its last
            `window` epochs is above that of the `window` before by no more than two standard errors of their
            difference, or by less than 1e-6 nats a row. None: all epochs are run.
        window: epochs of those means.
        validation: the share of the rows held out, drawn by the seed; their ELBO is taken after every epoch, with
            the same draws each time, it is what `patience` watches, and the parameters of the best epoch are kept.
            Without it `patience` keeps those of the epoch at which the mean of the last `window` was highest.
        steps_per_execution: steps taken by one call of what is compiled; for networks so small that a call costs as
            much as its work. The graph of several takes longer to compile. Default: 4 to 8 where a run of such
            steps is long enough to repay that, else 1.
        autocast: matrix products and convolutions of the steps in bfloat16 (`torch.autocast`), everything else, the
            parameters and what comes after the run in float32. Faster where the hardware has such products.

    Learned scales of observed real columns stay at or above 1e-4 of the column's spread (1e-10 of Student-t's): a
    density has no upper bound without a floor. `fit.run.floored` and a note name the columns that end there.

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
    objective: str = "elbo"
    kl: str = "sampled"
    beta: float = 1.0
    warm_up: int = 0
    free_bits: float = 0.0
    clip_norm: float | None = None
    weight_decay: float = 0.0
    schedule: Any = None
    on_nan: str = "stop"
    patience: int | None = None
    window: int = 10
    validation: float = 0.0
    steps_per_execution: int | None = None
    autocast: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "particles"):
            _whole("SVI", name, getattr(self, name), 1)
        _whole("SVI", "warm_up", self.warm_up, 0)
        _positive("SVI", "learning_rate", self.learning_rate)
        for name in ("beta", "free_bits", "weight_decay"):
            _positive("SVI", name, getattr(self, name), zero=True)
        if self.clip_norm is not None:
            _positive("SVI", "clip_norm", self.clip_norm)
        _choice("SVI", "objective", self.objective, OBJECTIVES)
        _choice("SVI", "kl", self.kl, KLS)
        _refuse_with_importance(self)
        _choice("SVI", "on_nan", self.on_nan, ON_NAN)
        if self.patience is not None:
            _whole("SVI", "patience", self.patience, 1)
        _whole("SVI", "window", self.window, 2)
        _positive("SVI", "validation", self.validation, zero=True)
        if self.validation >= 1:
            raise FitError(
                f"SVI: validation is a share of the rows, from 0 to below 1, not {self.validation!r}"
            )
        if self.steps_per_execution is not None:
            _whole("SVI", "steps_per_execution", self.steps_per_execution, 1)
        if not isinstance(self.autocast, bool):
            raise FitError(f"SVI: autocast must be True or False, not {self.autocast!r}")
        _choice("SVI", "lowering", self.lowering, (*LOWERINGS, "captured"))
        if isinstance(self.optimizer, str):
            _choice("SVI", "optimizer", self.optimizer, tuple(OPTIMIZERS))
        elif not callable(self.optimizer):
            raise FitError(f"SVI: optimizer must be a name or a function, not {self.optimizer!r}")
        if (self.steps_per_execution or 1) > 1 and (
            self.optimizer != "adam" or self.lowering in ("eager", "traced")
        ):
            raise FitError(
                f"SVI: steps_per_execution={self.steps_per_execution} goes with optimizer='adam', whose step is in "
                "the graph, and lowering='auto', 'compiled' or 'captured'"
            )
        if isinstance(self.schedule, str):
            _choice("SVI", "schedule", self.schedule, tuple(SCHEDULES))
        elif self.schedule is not None and not callable(self.schedule):
            raise FitError(f"SVI: schedule must be a name or a function, not {self.schedule!r}")


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
        key: value if value is None or isinstance(value, str | int | float) else f"<{type(value).__name__}>"
        for key, value in options.items()
    }
    return {"name": type(algorithm).__name__, **plain}


def _whole(owner: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise FitError(f"{owner}: {name} must be a whole number from {least}, not {value!r}")


def _refuse_with_importance(algorithm: SVI) -> None:
    """The importance-weighted bound has no Kullback–Leibler part that could be weighed or floored."""
    if algorithm.objective != "iwae":
        return
    if algorithm.particles < 2:
        raise FitError("SVI: objective='iwae' wants particles of 2 or more; with 1 it is the ELBO")
    asked = {"kl": "sampled", "beta": 1.0, "warm_up": 0, "free_bits": 0.0}
    for name, plain in asked.items():
        if getattr(algorithm, name) != plain:
            raise FitError(f"SVI: {name}={getattr(algorithm, name)!r} goes with objective='elbo' only")


def _positive(owner: str, name: str, value: Any, zero: bool = False) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value > 0 or (zero and value == 0)) or value == float("inf"):
        what = "a number from 0" if zero else "a positive number"
        raise FitError(f"{owner}: {name} must be {what}, not {value!r}")


def _choice(owner: str, name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise FitError(f"{owner}: {name} must be one of {', '.join(choices)}, not {value!r}")
