"""Callbacks: they see the run, cannot harm it, and TensorBoard and MLflow get what they are to get."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ppl_gen.declare.nodes import Normal
from ppl_gen.declare.phrasebook import gaussian_mixture
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import Free, Linear
from ppl_gen.errors import FitError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM, SVI
from ppl_gen.infer.callbacks import Begun, Callback, Epoch, MLflow, TensorBoard, history_csv
from ppl_gen.infer.checkpoints import Checkpoints
from ppl_gen.infer.run import Run
from ppl_gen.resuming import resume

X = np.random.default_rng(0).normal(size=(40, 3))
SPEC = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})
ALGORITHM = SVI(epochs=3, batch_size=16, lowering="eager", validation=0.2)


def test_a_callback_is_told_of_the_beginning_every_epoch_and_the_end():
    class Told(Callback):
        def __init__(self) -> None:
            self.heard: list[Any] = []

        def on_begin(self, begun: Begun) -> None:
            self.heard.append(begun)

        def on_epoch(self, epoch: Epoch) -> None:
            self.heard.append(epoch)

        def on_end(self, run: Run) -> None:
            self.heard.append(run)

    told = Told()
    result = fit(SPEC, X, SVI(epochs=3, batch_size=16, schedule="linear"), seed=5, callbacks=[told])
    begun, *epochs, run = told.heard
    assert (begun.seed, begun.done, begun.epochs, begun.algorithm["batch_size"]) == (5, 0, 3, 16)
    assert [e.number for e in epochs] == [1, 2, 3]
    assert [e.elbo for e in epochs] == list(result.history)
    assert epochs[0].learning_rate == 1e-3
    assert epochs[1].learning_rate == pytest.approx(1e-3 * (1 - 0.99 / 3))
    assert run.history == result.run.history


class Drawing(Callback):
    """Uses up noise, and changes the seed."""

    def on_begin(self, begun: Begun) -> None:
        torch.manual_seed(99)

    def on_epoch(self, epoch: Epoch) -> None:
        torch.rand(1000)


class Failing(Callback):
    """Fails when it is told of an epoch."""

    def __init__(self) -> None:
        self.calls = 0

    def on_epoch(self, epoch: Epoch) -> None:
        self.calls += 1
        raise OSError("the server is gone")


def test_a_callback_changes_no_bit_of_the_run_and_its_failure_does_not_end_it():
    failing = Failing()
    plain, watched = fit(SPEC, X, ALGORITHM), fit(SPEC, X, ALGORITHM, callbacks=[Drawing(), failing])
    assert plain.run.history == watched.run.history
    assert all(torch.equal(value, watched.run.state[path]) for path, value in plain.run.state.items())
    assert failing.calls == 1
    assert [n for n in watched.run.notes if "Failing failed after epoch 1" in n and "the server is gone" in n]


@pytest.mark.parametrize("odd", [print, object(), Failing], ids=["a function", "an object", "a class"])
def test_what_is_no_callback_is_refused_before_the_run(odd):
    with pytest.raises(FitError, match="objects of a subclass of Callback"):
        fit(SPEC, X, ALGORITHM, callbacks=[odd])


def test_callbacks_of_a_fit_by_em_are_refused_not_forgotten():
    with pytest.raises(FitError, match="callbacks= goes with SVI"):
        fit(gaussian_mixture(2), X, EM(), callbacks=[Failing()])


def test_without_the_packages_the_extras_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(FitError, match=r"pip install 'ppl_gen\[tensorboard\]'"):
        TensorBoard("runs")
    with pytest.raises(FitError, match=r"pip install 'ppl_gen\[mlflow\]'"):
        MLflow()


class Recorder:
    """Stands in for a writer or a client: keeps what it is called with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.calls: list[tuple[Any, ...]] = [("made", *args, *options.values())]

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, *args, *options.values()))
            if name == "get_experiment_by_name":
                return None
            return "7" if name == "create_experiment" else SimpleNamespace(info=SimpleNamespace(run_id="r"))

        return call

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> list[Recorder]:
    made: list[Recorder] = []

    def make(*args: Any, **options: Any) -> Recorder:
        made.append(Recorder(*args, **options))
        return made[-1]

    fake = ModuleType(module)
    setattr(fake, name, make)
    monkeypatch.setitem(sys.modules, module, fake)
    return made


def test_tensorboard_gets_every_epoch(monkeypatch):
    made = stand_in(monkeypatch, "torch.utils.tensorboard", "SummaryWriter")
    result = fit(SPEC, X, ALGORITHM, callbacks=[TensorBoard("runs/one")])
    [writer] = made
    assert writer.of("made") == [("runs/one",)]
    scalars = writer.of("add_scalar")
    assert [(v, n) for name, v, n in scalars if name == "elbo"] == list(
        zip(result.history, (1, 2, 3), strict=True)
    )
    assert [v for name, v, _ in scalars if name == "held_out"] == list(result.run.held_out)
    assert writer.of("close") == [()]


def test_mlflow_gets_options_epochs_history_and_the_ending_in_a_run_of_its_own(monkeypatch):
    made = stand_in(monkeypatch, "mlflow", "MlflowClient")
    result = fit(SPEC, X, ALGORITHM, callbacks=[MLflow("digits", run_name="one", tracking_uri="file:x")])
    [client] = made
    assert client.of("create_experiment") == [("digits",)]
    assert client.of("create_run") == [("7", "one")]
    assert ("r", "batch_size", 16) in client.of("log_param")
    elbos = [(value, step) for _, name, value, step in client.of("log_metric") if name == "elbo"]
    assert elbos == list(zip(result.history, (1, 2, 3), strict=True))
    [(_, text, file)] = client.of("log_text")
    assert (file, text) == ("history.csv", history_csv(result.run.history, result.run.held_out))
    assert client.of("set_terminated") == [("r", "FINISHED")]


def test_history_csv_holds_every_number_to_the_bit():
    values = [-1 / 3, 1e300, float(np.nextafter(1.0, 2.0))]
    rows = [line.split(",") for line in history_csv(values).splitlines()[1:]]
    assert [float(value) for _, value in rows] == values


def test_what_tensorboard_wrote_its_own_reader_reads_and_a_resumed_run_tells_no_epoch_twice(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Cut(Callback):
        def on_epoch(self, epoch: Epoch) -> None:
            if epoch.number == 3:
                raise KeyboardInterrupt

    every = Checkpoints(tmp_path / "run", every_epochs=1)
    callbacks = [TensorBoard(tmp_path / "log"), Cut()]
    with pytest.raises(KeyboardInterrupt):
        fit(SPEC, X, ALGORITHM, callbacks=callbacks, checkpoint=every)
    whole = resume(tmp_path / "run", X, callbacks=[TensorBoard(tmp_path / "log")])
    read = EventAccumulator(str(tmp_path / "log")).Reload()
    for name, values in (("elbo", whole.history), ("held_out", whole.run.held_out)):
        found = read.Scalars(name)
        assert [event.step for event in found] == [1, 2, 3]
        np.testing.assert_allclose([event.value for event in found], values, rtol=1e-6)  # it keeps float32
    assert read.Tensors("status/text_summary")[0].tensor_proto.string_val == [whole.status.value.encode()]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_what_mlflow_stored_its_own_client_reads(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = (tmp_path / "store").as_uri()
    result = fit(SPEC, X, ALGORITHM, callbacks=[MLflow("digits", run_name="one", tracking_uri=place)])
    client = mlflow.MlflowClient(tracking_uri=place)
    [run] = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "one")
    assert (run.data.params["batch_size"], run.data.params["seed"]) == ("16", "0")
    for name, values in (("elbo", result.history), ("held_out", result.run.held_out)):
        found = client.get_metric_history(run.info.run_id, name)
        assert [(own.step, own.value) for own in found] == list(enumerate(map(float, values), 1))
    stored = client.download_artifacts(run.info.run_id, "history.csv", str(tmp_path))
    assert Path(stored).read_text() == history_csv(result.run.history, result.run.held_out)


def test_a_place_that_mlflow_refuses_is_said_in_one_line(monkeypatch):
    class Refusing:
        def __init__(self, tracking_uri: str | None) -> None:
            raise RuntimeError("no such store\nand more")

    fake = ModuleType("mlflow")
    fake.MlflowClient = Refusing  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with pytest.raises(FitError, match=r"^MLflow cannot be reached: no such store$"):
        MLflow()
