"""Who is told of a run as it goes: callbacks, TensorBoard and MLflow among them, and the history as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch

from ppl_gen.errors import FitError
from ppl_gen.infer.progress import Progress
from ppl_gen.infer.run import Run


@dataclass(frozen=True)
class Begun:
    """A run that begins, or goes on.

    Args:
        algorithm: its name and options.
        seed: of the run.
        done: epochs done before, by the run that is resumed; else 0.
        epochs: in all.

    """

    algorithm: Mapping[str, Any]
    seed: int
    done: int
    epochs: int


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Args:
        number: from 1.
        epochs: in all.
        elbo: as its steps saw it, in nats summed over rows.
        held_out: that of the held-out rows after it; None where there are none.
        learning_rate: of its steps.

    """

    number: int
    epochs: int
    elbo: float
    held_out: float | None
    learning_rate: float


class Callback(Protocol):
    """What is told of an SVI run; subclass it and write those of the three that you want.

    Torch's noise is put back after each call. A run that is resumed tells the epochs since its checkpoint again.

    Example:
        >>> class Printed(Callback):
        ...     def on_epoch(self, epoch):
        ...         print(epoch.number, epoch.elbo < 0)
        >>> from ppl_gen import SVI, fit, vae
        >>> _ = fit(vae(1, (4,)), [[0.0, 1.0], [2.0, 0.5], [1.0, 1.0]], SVI(epochs=2), callbacks=[Printed()])
        1 True
        2 True

    """

    def on_begin(self, begun: Begun) -> None:
        """Before the first step; what it raises ends the fit."""

    def on_epoch(self, epoch: Epoch) -> None:
        """After each epoch. If it raises, it is not called again, the run goes on, and the notes say so."""

    def on_end(self, run: Run) -> None:
        """After the last one, however it ended. If it raises, the notes say so."""


class Audience:
    """All who are told of one run: the progress callback and the callbacks, none of whom can harm it.

    Args:
        progress: the epochs' bar; what it raises is raised.
        callbacks: objects with on_begin, on_epoch and on_end.
        devices: whose noise is put back, beside the CPU's.

    Raises:
        FitError: one of them lacks a method.

    """

    def __init__(
        self, progress: Progress | None, callbacks: Sequence[Callback], devices: Sequence[Any]
    ) -> None:
        self.progress, self.devices = progress, list(devices)
        check_callbacks(callbacks)
        self.callbacks = list(callbacks)
        self.notes: list[str] = []

    def begin(self, begun: Begun) -> None:
        """Tell that it begins."""
        with torch.random.fork_rng(devices=self.devices):
            for callback in self.callbacks:
                callback.on_begin(begun)

    def tell(self, epoch: Epoch) -> None:
        """Tell of an epoch."""
        if self.progress is None and not self.callbacks:
            return
        with torch.random.fork_rng(devices=self.devices):
            if self.progress is not None:
                self.progress(epoch.number, epoch.epochs, epoch.elbo)
            for callback in list(self.callbacks):
                with self._guarded(callback, f"after epoch {epoch.number} and is not called again"):
                    callback.on_epoch(epoch)

    def end(self, run: Run) -> None:
        """Tell how it ended."""
        with torch.random.fork_rng(devices=self.devices):
            for callback in list(self.callbacks):
                with self._guarded(callback, "at the end"):
                    callback.on_end(run)

    @contextmanager
    def _guarded(self, callback: Callback, when: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is, the run is worth more
            self.notes.append(f"the callback {type(callback).__name__} failed {when}: {error!r}")
            self.callbacks.remove(callback)


def check_callbacks(callbacks: Sequence[Callback]) -> None:
    """Find out before a fit whether its callbacks can be called.

    Raises:
        FitError: they are no list; or one of them lacks a method.

    """
    if not isinstance(callbacks, list | tuple):
        raise FitError(f"callbacks: write a list, callbacks=[…], not {callbacks!r}")
    for callback in callbacks:
        lacking = [n for n in ("on_begin", "on_epoch", "on_end") if not callable(getattr(callback, n, None))]
        if isinstance(callback, type) or lacking:
            raise FitError(
                f"callbacks: {callback!r} has no {', '.join(lacking) or 'instance'}; give objects of a subclass of "
                "Callback"
            )


class TensorBoard(Callback):
    """Writes ELBO, held-out ELBO and learning rate by epoch for TensorBoard.

    Args:
        folder: the log directory of this run.

    Raises:
        FitError: the extra `tensorboard` is not installed.

    """

    def __init__(self, folder: str | Path) -> None:
        self._module = _needed("torch.utils.tensorboard", "tensorboard", "TensorBoard")
        self._folder = str(folder)

    def on_begin(self, begun: Begun) -> None:
        """Open the log; epochs that a killed run has written after its checkpoint are told again, not twice."""
        again = {"purge_step": begun.done + 1} if begun.done else {}
        self._writer = self._module.SummaryWriter(self._folder, **again)

    def on_epoch(self, epoch: Epoch) -> None:
        """Write the epoch's numbers."""
        for name, value in _numbers(epoch).items():
            self._writer.add_scalar(name, value, epoch.number)

    def on_end(self, run: Run) -> None:
        """Write how it ended, and close."""
        self._writer.add_text("status", run.status.value)
        self._writer.close()


class MLflow(Callback):
    """Logs options, numbers by epoch, the ending and history.csv as one run of MLflow.

    No run of the caller's is touched: it is reached by its own id.

    Args:
        experiment: its name, made where there is none.
        run_name: what the run is called; None: MLflow's choice.
        tracking_uri: of the server or the database, as "http://localhost:5000" or "sqlite:///mlflow.db"; None:
            MLflow's own setting.

    Raises:
        FitError: the extra `mlflow` is not installed, or MLflow refuses the place.

    """

    def __init__(
        self, experiment: str = "ppl_gen", *, run_name: str | None = None, tracking_uri: str | None = None
    ) -> None:
        mlflow = _needed("mlflow", "mlflow", "MLflow")
        try:
            self._client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        except Exception as error:
            raise FitError(f"MLflow cannot be reached: {str(error).splitlines()[0]}") from error
        self._experiment, self._run_name, self._run_id = experiment, run_name, ""

    def on_begin(self, begun: Begun) -> None:
        """Open the run and log the options."""
        try:
            found = self._client.get_experiment_by_name(self._experiment)
            home = self._client.create_experiment(self._experiment) if found is None else found.experiment_id
            self._run_id = self._client.create_run(home, run_name=self._run_name).info.run_id
        except Exception as error:  # a store that is not there, or that this installation cannot read
            raise FitError(f"MLflow cannot open a run: {str(error).splitlines()[0]}") from error
        for name, value in {**begun.algorithm, "seed": begun.seed, "epochs before": begun.done}.items():
            self._client.log_param(self._run_id, name, value)

    def on_epoch(self, epoch: Epoch) -> None:
        """Log the epoch's numbers."""
        for name, value in _numbers(epoch).items():
            self._client.log_metric(self._run_id, name, value, step=epoch.number)

    def on_end(self, run: Run) -> None:
        """Log the history and how it ended, and close the run."""
        self._client.log_text(self._run_id, history_csv(run.history, run.held_out), "history.csv")
        self._client.set_tag(self._run_id, "status", run.status.value)
        self._client.set_terminated(self._run_id, "FINISHED" if run.status.usable else "FAILED")


def history_csv(history: Sequence[float], held_out: Sequence[float] = ()) -> str:
    r"""A run's history as CSV, a line for each epoch or step; numbers as they are, to the bit.

    Args:
        history: the objective, in nats summed over rows.
        held_out: the ELBO of held-out rows, where there are any.

    Example:
        >>> history_csv([-12.5, -11.25], [-3.0, -2.5])
        'step,objective,held_out\n1,-12.5,-3.0\n2,-11.25,-2.5\n'

    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", "objective", *(["held_out"] if held_out else [])])
    columns = [history, held_out] if held_out else [history]
    for number, values in enumerate(zip_longest(*columns, fillvalue=math.nan), 1):
        rows.writerow([number, *map(repr, map(float, values))])
    return text.getvalue()


def _numbers(epoch: Epoch) -> dict[str, float]:
    held_out = {} if epoch.held_out is None else {"held_out": epoch.held_out}
    return {"elbo": epoch.elbo, **held_out, "learning_rate": epoch.learning_rate}


def _needed(module: str, extra: str, who: str) -> Any:
    """A module of an extra, imported when it is first wanted."""
    try:
        return import_module(module)
    except ImportError as error:
        raise FitError(f"{who} wants the extra '{extra}': pip install 'ppl_gen[{extra}]' ({error})") from None
