"""`fit --checkpoint` and `resume` as a user meets them: a killed process, and what the next command prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from ppl_gen.cli import app
from ppl_gen.results.storage import load

SPEC = "model:\n  z: Normal(1, loc=0, scale=1)\n  x: Normal(loc=MLP(z, [4]), scale=Free())\n"


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])  # type: ignore[return-value]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(200, 3)), columns=["a", "b", "c"])
    rows.to_csv(tmp_path / "rows.csv", index=False)
    return tmp_path


def test_a_killed_fit_is_resumed_from_its_folder_alone_and_saves_the_fit_it_would_have_saved(
    place, monkeypatch
):
    algorithm = "SVI(epochs=80, batch_size=40, lowering='eager')"
    words = ["fit", place / "spec.yaml", "rows.csv", "--algorithm", algorithm, "--seed", "7"]
    command = [
        sys.executable,
        "-m",
        "ppl_gen",
        *map(str, words),
        "--checkpoint",
        "run",
        "--every-epochs",
        "1",
    ]
    killed = subprocess.Popen(
        command, cwd=place, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
    )
    patience = time.monotonic() + 120
    while not (place / "run" / "checkpoint-00000003").exists() and time.monotonic() < patience:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL

    monkeypatch.chdir(place.parent)  # the path of the rows was remembered as an absolute one
    done = run("resume", place / "run", "--out", place / "resumed", "--spec", place / "spec.yaml")
    assert done.exit_code == 0, done.stderr or done.exception
    assert "resumed from checkpoint-" in done.stdout
    monkeypatch.chdir(place)
    assert run(*words, "--out", place / "whole").exit_code == 0
    resumed, whole = load(place / "resumed"), load(place / "whole")
    assert resumed.run.history == whole.run.history
    assert all(torch.equal(v, resumed.run.state[path]) for path, v in whole.run.state.items())
    history = (place / "run" / "history.csv").read_text().splitlines()
    assert len(history) == 81


def test_mistakes_are_told_in_one_line(place):
    rows, spec, folder = place / "rows.csv", place / "spec.yaml", place / "run"
    fitted = run("fit", spec, rows, "--algorithm", "SVI(epochs=1)", "--checkpoint", folder)
    assert fitted.exit_code == 0, fitted.stderr
    cases = [
        (("resume", place / "none"), "no checkpoints here: the folder does not exist"),
        (("resume", folder, "--spec", "vae"), "the run was begun on another declaration"),
        (("fit", spec, rows, "--checkpoint", folder), "resume it"),
        (("fit", spec, rows, "--every-epochs", "2"), "go with --checkpoint DIR"),
        (
            ("fit", spec, rows, "--checkpoint", folder, "--every-minutes", "0"),
            "every_minutes must be a positive",
        ),
        (("fit", "gaussian_mixture", rows, "--checkpoint", place / "em"), "checkpoint= goes with SVI"),
    ]
    for words, message in cases:
        done = run(*words)
        assert done.exit_code == 2, words
        assert message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    changed = pd.read_csv(rows)
    changed.loc[3, "b"] += 1
    changed.to_csv(rows, index=False)
    done = run("resume", folder)
    assert done.exit_code == 2
    assert "the values of 'x' have changed" in done.stderr


def test_early_stopping_is_asked_for_on_the_command_line(place):
    text = "SVI(epochs=60, patience=2, window=2, validation=0.2, on_nan='recover', learning_rate=0.03)"
    done = run("fit", place / "spec.yaml", place / "rows.csv", "--algorithm", text)
    assert done.exit_code == 0, done.stderr
    assert "status    levelled off" in done.stdout or "status    stopped early" in done.stdout
    assert "of 60 the ELBO of the held-out rows has the mean" in done.stdout
