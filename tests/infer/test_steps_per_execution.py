"""Several steps in one call: the steps that single calls take, whatever cuts a run, an epoch or a step short.

Save for one test, what is compiled is the recorded graph itself: who groups what does not depend on the compiler.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_gen import MLP, SVI, Checkpoints, Free, Linear, Normal, Rows, Spec, fit, resume, vae
from ppl_gen.data.reading import read_table
from ppl_gen.infer import ascent
from ppl_gen.infer.ascent import Ascent
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Status
from ppl_gen.infer.svi import run_svi
from ppl_gen.infer.training import Training
from ppl_gen.program.program import compile_spec

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(110, 2)) @ RANDOM.normal(size=(2, 4)) + 0.1 * RANDOM.normal(size=(110, 4))
VAE = Spec(
    model={"z": Normal(2, loc=0, scale=1), "x": Normal(4, loc=MLP("z", [5]), scale=Free())},
    guide={"z": Normal(2, loc=MLP("x", [5]), scale=MLP("x", [5]))},
)
# Five full batches of twenty rows and one of ten: a call of four steps, then two of one.
PLAIN = {"epochs": 4, "batch_size": 20, "lowering": "compiled"}
MUCH = {
    "warm_up": 3,
    "beta": 2.0,
    "clip_norm": 1.0,
    "weight_decay": 0.1,
    "kl": "analytic",
    "schedule": "cosine",
}


@pytest.fixture
def no_compiler_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_gen.program.lowering.compile_graph", lambda body, flat: lambda *own: body(*own))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of every call, in turn."""
    made: list[int] = []
    one, many = Ascent.advance, Ascent.advance_together

    def advance(self, index, full, data=None):
        made.append(1)
        return one(self, index, full, data)

    def advance_together(self, index, data, shares):
        made.append(len(index))
        return many(self, index, data, shares)

    monkeypatch.setattr(Ascent, "advance", advance)
    monkeypatch.setattr(Ascent, "advance_together", advance_together)
    return made


def run(spec: Spec = VAE, rows: np.ndarray = X, **options: object) -> Run:
    table = read_table({"x": rows}, spec)
    return run_svi(compile_spec(spec, table.schema, seed=0), table, SVI(**PLAIN | options), seed=1)


@pytest.mark.filterwarnings("ignore")  # inductor warns of itself, and fails where that is an error
@pytest.mark.parametrize("options", [{}, MUCH], ids=["plain", "much"])
def test_compiled_together_they_are_the_steps_of_eager_pyro(options, calls):
    eager = run(**options, lowering="eager")
    assert set(calls) == {1}
    calls.clear()
    together = run(**options, steps_per_execution=4)
    assert together.lowering == "compiled"
    assert calls == [4, 1, 1] * 4
    np.testing.assert_allclose(together.history, eager.history, rtol=1e-5)  # float32 over 24 steps
    for path, value in eager.state.items():
        torch.testing.assert_close(together.state[path], value, rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("no_compiler_needed")
@pytest.mark.parametrize("steps", [2, 5, 8])
def test_an_epoch_is_cut_into_whole_calls_and_the_rest(steps, calls):
    one = run(**MUCH)
    calls.clear()
    together = run(**MUCH, steps_per_execution=steps)
    assert calls == {2: [2, 2, 1, 1], 5: [5, 1], 8: [5, 1]}[steps] * 4
    assert together.history == one.history
    assert all(torch.equal(value, one.state[path]) for path, value in together.state.items())


@pytest.mark.usefixtures("no_compiler_needed")
def test_a_run_cut_short_at_any_call_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch, calls):
    class CutShortError(Exception):
        pass

    algorithm = SVI(**PLAIN | MUCH, steps_per_execution=2, validation=0.1)
    whole = fit(VAE, X, algorithm, seed=3)
    planned = len(calls)
    real = Training._call
    for stop in (1, 2, 3, planned - 1):
        calls.clear()

        def called(self, *rest, stop=stop):
            if len(calls) == stop:
                raise CutShortError
            return real(self, *rest)

        folder = tmp_path / str(stop)
        monkeypatch.setattr(Training, "_call", called)
        with pytest.raises(CutShortError):
            fit(VAE, X, algorithm, seed=3, checkpoint=Checkpoints(folder, every_minutes=1e-9))
        monkeypatch.setattr(Training, "_call", real)
        calls.clear()
        resumed = resume(folder, X)
        assert 0 < len(calls) < planned
        assert resumed.run.history == whole.run.history
        assert all(torch.equal(value, whole.run.state[path]) for path, value in resumed.run.state.items())


@pytest.mark.usefixtures("no_compiler_needed")
def test_the_step_of_a_call_that_is_not_finite_is_found_and_nothing_after_it_counts():
    far = X.copy()
    far[37, 1] = 1e30  # its square is beyond float32
    spec = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=1.0)})
    told = {}
    for steps in (1, 5):
        table = read_table({"x": X}, spec)
        program = compile_spec(spec, table.schema, seed=0)
        table.arrays["x"] = far  # as if it had come after the columns' checks
        told[steps] = run_svi(program, table, SVI(**PLAIN, steps_per_execution=steps), seed=1)
    one, together = told[1], told[5]
    assert together.status is one.status is Status.DIVERGED
    assert together.notes == one.notes
    assert together.notes[0].startswith("epoch 1, batch 2 of 6: ")  # the call moves something first
    assert "to 1e+30" in together.notes[0]
    assert all(torch.equal(value, one.state[path]) for path, value in together.state.items())


@pytest.mark.usefixtures("no_compiler_needed")
def test_recovering_is_the_same():
    wild = {"learning_rate": 300.0, "on_nan": "recover"}
    one, together = run(vae(1, (4,)), **wild), run(vae(1, (4,)), **wild, steps_per_execution=4)
    assert any("of the learning rate" in note for note in one.notes)
    assert (together.notes, together.history) == (one.notes, one.history)


@pytest.mark.usefixtures("no_compiler_needed")
def test_streamed_rows_are_put_side_by_side(tmp_path: Path, calls, monkeypatch):
    monkeypatch.setattr("ppl_gen.infer.feeding.PIECE_BYTES", 1_000)  # a call takes from several pieces
    np.save(tmp_path / "x.npy", X)
    found = {}
    for steps in (1, 4):
        calls.clear()
        algorithm = SVI(**PLAIN, steps_per_execution=steps)
        found[steps] = fit(VAE, Rows(tmp_path / "x.npy", chunk_rows=30), algorithm).run
    assert calls == [4, 1, 1] * 4
    assert found[4].history == found[1].history


@pytest.mark.usefixtures("no_compiler_needed")
def test_a_long_run_of_tiny_steps_takes_them_together_by_itself(calls, monkeypatch):
    monkeypatch.setattr(ascent, "TINY_SECONDS", 1e9)
    monkeypatch.setattr(ascent, "COMPILE_SECONDS", 0.0)
    options = {"lowering": "auto", "epochs": 4}
    for gain, together in ((0.0, False), (1.0, True)):
        monkeypatch.setattr(ascent, "TOGETHER_GAIN", gain)
        calls.clear()
        assert run(**options).lowering == "compiled"
        # Twelve steps decide; of five batches five go into a call.
        assert calls == ([1] * 12 + [5, 1] * 2 if together else [1] * 24)


def test_without_a_compiler_the_rest_is_traced_step_by_step(calls, monkeypatch, caplog):
    monkeypatch.setattr("ppl_gen.program.inductor._compiled", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, logger="ppl_gen"):
        found = run(steps_per_execution=4)
    assert "the traced step runs instead" in caplog.text
    assert found.lowering == "traced"
    assert calls == [4] + [1] * 20
    assert found.history == run(lowering="traced").history
