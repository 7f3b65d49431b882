"""Runs that survive: whatever cuts one short, it goes on to the bits of one that nothing cut short."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, Normal
from ppl_gen.declare.phrasebook import gaussian_mixture, vae
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By, Free, Linear
from ppl_gen.errors import DataError, FitError
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM, OPTIMIZERS, SVI
from ppl_gen.infer.checkpoints import Checkpoints
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Status
from ppl_gen.infer.svi import run_svi
from ppl_gen.program.program import compile_spec
from ppl_gen.results import checkpoint_files
from ppl_gen.results.checkpoint_files import CheckpointFolder, newest
from ppl_gen.results.checkpoint_identity import open_folder
from ppl_gen.results.storage import load
from ppl_gen.resuming import resume

X = np.random.default_rng(0).normal(size=(60, 3))
SPEC = Spec(model={"z": Normal(1, loc=0, scale=1), "x": Normal(loc=Linear("z"), scale=Free())})
EAGER = SVI(epochs=4, batch_size=16, lowering="eager")


class CutShortError(Exception):
    """Stands for whatever ends a process."""


def run(
    algorithm: SVI, keeper: CheckpointFolder | None = None, stop: int = 0, resumed: dict | None = None
) -> Run:
    """A run, cut short after so many epochs."""

    def progress(done: int, planned: int, elbo: float) -> None:
        if done == stop:
            raise CutShortError

    table = read_table({"x": X}, SPEC)
    program = compile_spec(SPEC, table.schema)
    return run_svi(program, table, algorithm, seed=3, progress=progress, keeper=keeper, resumed=resumed)


def keeper_of(algorithm: SVI, checkpoints: Checkpoints) -> CheckpointFolder:
    table = read_table({"x": X}, SPEC)
    program = compile_spec(SPEC, table.schema)
    return open_folder(checkpoints, program, table, algorithm, seed=3, reason="", data=None, weights=None)


def cut_and_resumed(algorithm: SVI, folder: Path, stop: int = 3) -> Run:
    keeper = keeper_of(algorithm, Checkpoints(folder, every_epochs=1))
    with pytest.raises(CutShortError):
        run(algorithm, keeper, stop)
    return run(algorithm, keeper, resumed=newest(folder).snapshot)


def same(one: Run, other: Run) -> bool:
    states = all(torch.equal(value, other.state[path]) for path, value in one.state.items())
    return states and (one.history, one.held_out, one.status) == (other.history, other.held_out, other.status)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The checkpoints of a fit that was cut short after three epochs of four: those of one and of two."""
    folder = tmp_path / "run"
    with pytest.raises(CutShortError):
        fit(SPEC, X, EAGER, checkpoint=Checkpoints(folder, every_epochs=1), progress=stop_at_three)
    return folder


def stop_at_three(done: int, planned: int, elbo: float) -> None:
    if done == 3:
        raise CutShortError


@pytest.mark.parametrize(
    "how", [["random", "1"], ["every"]], ids=["at random moments", "at every file operation"]
)
def test_a_killed_run_goes_on_to_the_very_same_bits(how):
    script = Path(__file__).parent / "killed_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), *how],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    # On a machine that is busy elsewhere some runs end before their turn.
    assert found["kills"] >= (2 if how[0] == "random" else 8)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_memory_of_every_optimiser_survives(name, tmp_path):
    algorithm = SVI(
        epochs=5, batch_size=16, lowering="eager", optimizer=name, learning_rate=0.01, schedule="cosine"
    )
    assert same(run(algorithm), cut_and_resumed(algorithm, tmp_path / "run"))


def test_functions_for_optimiser_and_schedule_survive_and_have_to_be_given_again(tmp_path):
    algorithm = SVI(
        epochs=5,
        batch_size=16,
        lowering="eager",
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        schedule=lambda own: torch.optim.lr_scheduler.ReduceLROnPlateau(own, patience=0, threshold=0.5),
    )
    assert same(run(algorithm), cut_and_resumed(algorithm, tmp_path / "run"))
    with pytest.raises(FitError, match=r"optimizer and schedule is a function.*give the same again"):
        resume(tmp_path / "run", X)


def test_a_run_that_has_recovered_goes_on_as_slowly_as_it_was(tmp_path):
    algorithm = SVI(
        epochs=6,
        batch_size=16,
        lowering="eager",
        learning_rate=4.0,
        optimizer="sgd",
        on_nan="recover",
        particles=2,
    )
    whole, resumed = run(algorithm), cut_and_resumed(algorithm, tmp_path / "run")
    assert any("1/2 of the learning rate" in note for note in whole.notes)
    assert same(whole, resumed)


AUTO = SVI(epochs=6, batch_size=16)  # four steps an epoch: the third one decides


def test_what_executed_the_steps_executes_the_rest(tmp_path, monkeypatch):
    # A compile is decided by a clock; a run that goes on must not ask it again.
    monkeypatch.setattr("ppl_gen.infer.ascent.COMPILE_SECONDS", 1e9)
    keeper = keeper_of(AUTO, Checkpoints(tmp_path / "run", every_epochs=1))
    with pytest.raises(CutShortError):
        run(AUTO, keeper, stop=4)
    monkeypatch.setattr("ppl_gen.infer.ascent.COMPILE_SECONDS", 0.0)
    assert run(AUTO, resumed=newest(tmp_path / "run").snapshot).lowering == "traced"


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_compiled_from_the_same_step_on_however_often_stored_or_cut(stop, tmp_path, monkeypatch, caplog):
    """The stand-in for the compiler moves every result a little, so that a step more or less of it is seen."""

    def off(body, flat):
        return lambda *own: [value * 1.001 if value.is_floating_point() else value for value in body(*own)]

    monkeypatch.setattr("ppl_gen.program.lowering.compile_graph", off)
    monkeypatch.setattr("ppl_gen.infer.ascent.COMPILE_SECONDS", 0.0)
    monkeypatch.setattr("ppl_gen.infer.ascent.TINY_SECONDS", 1e9)
    with caplog.at_level(logging.INFO, logger="ppl_gen"):
        whole = run(AUTO)
    assert "the 12 left run compiled, 3 a call" in caplog.text
    assert whole.lowering == "compiled"
    assert not same(whole, run(SVI(epochs=6, batch_size=16, lowering="traced")))
    assert same(whole, run(AUTO, keeper_of(AUTO, Checkpoints(tmp_path / "stored", every_minutes=1e-9))))
    assert same(whole, cut_and_resumed(AUTO, tmp_path / "cut", stop))


LABELS = np.where(np.arange(60) % 3 == 0, np.arange(60) % 2, np.nan)
HOLES = np.where(np.random.default_rng(1).random(X.shape) < 0.2, np.nan, X)
CLASSES = Spec(
    model={
        "c": Categorical(2),
        "z": Normal(1, loc=0, scale=1),
        "x": Normal(3, loc=Linear("z"), scale=By("c")),
    }
)
# With matrices large enough to be blocks of their own in a step, and products that round by where those lie.
WIDE = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(loc=MLP("z", [131]), scale=Free())})
MANY = np.random.default_rng(2).normal(size=(60, 131))
SLOW = {"epochs": 5, "batch_size": 16, "lowering": "eager"}


@pytest.mark.parametrize(
    ("spec", "data", "options", "algorithm"),
    [
        (SPEC, X, {"weights": np.linspace(0.5, 2, 60)}, SVI(**SLOW, optimizer="rmsprop")),
        (SPEC, HOLES, {}, SVI(**SLOW, optimizer="adamw", weight_decay=0.1)),
        (CLASSES, {"x": X, "c": LABELS}, {}, SVI(**SLOW, validation=0.2, patience=2, window=2)),
        (SPEC, X, {}, SVI(**SLOW, objective="iwae", particles=3, clip_norm=0.1)),
        (SPEC, X, {}, SVI(**SLOW, kl="analytic", beta=2.0, warm_up=4, free_bits=0.1)),
        (WIDE, MANY, {}, SVI(**SLOW | {"lowering": "traced"})),
        (WIDE, MANY, {}, SVI(**SLOW | {"lowering": "traced"}, optimizer="rmsprop")),
    ],
    ids=["weights", "holes", "labels", "iwae", "warm-up", "large", "large-torch"],
)
def test_whatever_the_rows_and_the_objective_resume_gives_the_fit_of_an_uncut_run(
    spec, data, options, algorithm, tmp_path
):
    checkpoint = Checkpoints(tmp_path / "run", every_minutes=1e-9)  # after each step
    with pytest.raises(CutShortError):
        fit(spec, data, algorithm, checkpoint=checkpoint, progress=stop_at_three, **options)
    resumed, whole = resume(tmp_path / "run", data, **options), fit(spec, data, algorithm, **options)
    assert same(resumed.run, whole.run)
    assert (resumed.elbo, resumed.log_likelihood) == (whole.elbo, whole.log_likelihood)


def test_every_single_bit_counts(interrupted):
    chance = np.random.default_rng(0)
    for name in ("state.json", "state.safetensors"):
        file = interrupted / "checkpoint-00000002" / name
        content = file.read_bytes()
        for bit in chance.integers(8 * len(content), size=40):
            altered = bytearray(content)
            altered[bit // 8] ^= 1 << bit % 8
            file.write_bytes(altered)
            assert newest(interrupted).path.name == "checkpoint-00000001", (name, bit)
        file.write_bytes(content)


@pytest.mark.skipif(sys.platform == "win32", reason="a lock of POSIX")
def test_two_processes_do_not_write_into_one_folder(interrupted):
    hold = "import sys, pathlib, ppl_gen.results.claims as c; own = c.claim(pathlib.Path(sys.argv[1])); "
    other = subprocess.Popen(
        [sys.executable, "-c", hold + "print('held', flush=True); input()", str(interrupted.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert other.stdout is not None
    assert other.stdin is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(FitError, match="another process is writing its checkpoints here"):
        resume(interrupted, X)
    with pytest.raises(FitError, match="another process is writing its checkpoints here"):
        fit(SPEC, X, EAGER, checkpoint=Checkpoints(interrupted, replace=True))
    other.kill()  # what it held ends with it
    other.wait()
    other.stdout.close()
    other.stdin.close()
    assert same(resume(interrupted, X).run, fit(SPEC, X, EAGER).run)
    assert not [own for own in interrupted.iterdir() if own.name.startswith(".")]


def test_a_memory_that_no_file_can_hold_is_refused_before_the_run(tmp_path):
    class Odd(torch.optim.SGD):
        def __init__(self, leaves) -> None:
            super().__init__(leaves, lr=0.1)
            self.param_groups[0]["rule"] = print

    algorithm = SVI(epochs=2, lowering="eager", optimizer=Odd)
    with pytest.raises(FitError, match=r"param_groups/0/rule: a builtin_function.* cannot be stored"):
        fit(SPEC, X, algorithm, checkpoint=Checkpoints(tmp_path / "run"))


def test_a_file_size_limit_is_a_full_disk_too(tmp_path):
    code = (
        "import resource, sys, numpy as np; from ppl_gen import SVI, Checkpoints, fit, vae;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "fitted = fit(vae(1, (8,)), np.ones((9, 2)) * np.arange(9.0)[:, None], SVI(epochs=2, lowering='eager'),"
        " checkpoint=Checkpoints(sys.argv[1], every_epochs=1)); print(fitted.run.notes, len(fitted.history))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert "could not be written" in done.stdout, done.stderr
    assert done.stdout.endswith(" 2\n")
    assert not list((tmp_path / "run").iterdir())


def test_two_checkpoints_and_the_history_are_kept(interrupted):
    assert sorted(p.name for p in interrupted.iterdir()) == [
        "checkpoint-00000001",
        "checkpoint-00000002",
        "history.csv",
    ]
    for own in (interrupted, interrupted / "checkpoint-00000002"):
        lines = (own / "history.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["step", "1", "2"]
    result = resume(interrupted, X)
    assert sorted(p.name for p in interrupted.glob("c*")) == ["checkpoint-00000003", "checkpoint-00000004"]
    assert any("resumed from checkpoint-00000002, after 2 of 4 epochs" in note for note in result.run.notes)
    assert same(result.run, fit(SPEC, X, EAGER).run)


def test_a_run_that_had_ended_is_only_summed_up_again(tmp_path):
    whole = fit(SPEC, X, EAGER, checkpoint=Checkpoints(tmp_path / "run"))
    again = resume(tmp_path / "run", X)
    assert same(whole.run, again.run)
    assert (again.elbo, again.log_likelihood) == (whole.elbo, whole.log_likelihood)


def damaged(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        place = content.index(b'"seed": 0') + 8 if file.suffix == ".json" else len(content) - 3
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize("file", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("how", ["missing", "truncated", "edited"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(interrupted, file, how):
    damaged(interrupted / "checkpoint-00000002" / file, how)
    found = newest(interrupted)
    assert found.path.name == "checkpoint-00000001"
    assert file in found.refused[0]
    damaged(interrupted / "checkpoint-00000001" / file, how)
    with pytest.raises(FitError, match=r"no checkpoint is whole: .*00000002.*00000001"):
        newest(interrupted)


def test_from_the_checkpoint_before_the_bits_are_the_same_and_the_damaged_one_goes(interrupted):
    damaged(interrupted / "checkpoint-00000002" / "state.safetensors", "truncated")
    with pytest.warns(
        UserWarning, match="passed over: .*state.safetensors: is not the file that was written"
    ):
        result = resume(interrupted, X)
    assert same(result.run, fit(SPEC, X, EAGER).run)
    assert sorted(p.name for p in interrupted.glob("c*")) == ["checkpoint-00000004", "checkpoint-00000005"]


def test_other_rows_another_declaration_and_another_algorithm_are_refused_by_name(interrupted):
    other = X.copy()
    other[7, 1] += 1e-12
    with pytest.raises(DataError, match="the values of 'x' have changed"):
        resume(interrupted, other)
    with pytest.raises(DataError, match="60 rows then, 59 now"):
        resume(interrupted, X[1:])
    with pytest.raises(DataError, match="the weights have changed"):
        resume(interrupted, X, weights=np.ones(60))
    with pytest.raises(FitError, match="another declaration"):
        resume(interrupted, X, spec=vae(1, (4,)))
    with pytest.raises(FitError, match="epochs=4, not 9"):
        resume(interrupted, X, algorithm=SVI(epochs=9, batch_size=16, lowering="eager"))
    with pytest.raises(FitError, match="give them again"):
        resume(interrupted)


def test_a_full_disk_costs_the_checkpoint_and_neither_the_run_nor_the_one_before(tmp_path, monkeypatch):
    keeper = keeper_of(EAGER, Checkpoints(tmp_path / "run", every_epochs=1))
    written, genuine = [0], checkpoint_files.write

    def full(path: Path, content: bytes) -> None:
        written[0] += 1
        if written[0] > 4:  # the second checkpoint's first file, and all after it
            path.write_bytes(content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        genuine(path, content)

    monkeypatch.setattr(checkpoint_files, "write", full)
    done = run(EAGER, keeper)
    assert same(done, run(EAGER))
    assert [note for note in done.notes if "No space left on device" in note]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint-00000001", "history.csv"]
    assert same(run(EAGER, resumed=newest(tmp_path / "run").snapshot), run(EAGER))


def test_a_folder_that_cannot_serve_is_refused_before_the_run(tmp_path, interrupted):
    with pytest.raises(FitError, match="holds the checkpoints of a run already; resume it"):
        fit(SPEC, X, EAGER, checkpoint=Checkpoints(interrupted))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("keep me")
    with pytest.raises(FitError, match=r"mine\.txt.*a folder of its own"):
        fit(SPEC, X, EAGER, checkpoint=Checkpoints(tmp_path / "letters", replace=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(FitError, match="cannot be written"):
        fit(SPEC, X, EAGER, checkpoint=Checkpoints(tmp_path / "file"))
    with pytest.raises(FitError, match="checkpoint= goes with SVI"):
        fit(gaussian_mixture(2), X, EM(), checkpoint=Checkpoints(tmp_path / "em"))
    with pytest.raises(FitError, match="is one checkpoint of a run; name the folder that it is in"):
        resume(interrupted / "checkpoint-00000002", X)
    with pytest.raises(FitError, match="holds the checkpoints of a run, and no saved fit"):
        load(interrupted)
    fit(SPEC, X, EAGER).save(tmp_path / "saved")
    with pytest.raises(FitError, match="is a saved fit, and no folder of checkpoints"):
        resume(tmp_path / "saved", X)
    with pytest.raises(FitError, match=r"begun with SVI\(…\), and algorithm is EM"):
        resume(interrupted, X, algorithm=EM())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FitError, match="no checkpoints here: the run ended before its first"):
        resume(tmp_path / "empty", X)


@pytest.mark.parametrize(
    "options", [{"every_epochs": 0}, {"every_epochs": True}, {"every_minutes": -1}], ids=str
)
def test_an_odd_pace_is_refused_by_name(options):
    with pytest.raises(FitError, match=next(iter(options))):
        Checkpoints("run", **options)


def test_fits_in_several_threads_do_not_touch_each_other():
    algorithm = SVI(epochs=3, batch_size=16, lowering="eager")
    jobs = [(SPEC, algorithm, 1), (SPEC, algorithm, 2), (gaussian_mixture(2), EM(restarts=3), 3)]
    alone = [fit(spec, X, how, seed=seed).run for spec, how, seed in jobs]
    together: dict[int, Run] = {}

    def work(i: int) -> None:
        spec, how, seed = jobs[i]
        together[i] = fit(spec, X, how, seed=seed).run

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(alone[i], together[i]) for i in range(len(jobs)))
    assert together[0].status is Status.EPOCHS_DONE
