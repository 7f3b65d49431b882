"""A saved fit is whole or it is not there, and what was altered is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppl_gen.declare.nodes import Categorical, Input, Normal
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import MLP, By
from ppl_gen.errors import FitError
from ppl_gen.results.fit import Fit
from ppl_gen.results.storage import check_writable, load, save_fit

Build = Callable[..., Fit]

FILES = ("spec.yaml", "params.safetensors", "fit.json")


def test_a_fit_predicts_after_loading_what_it_did_before_to_the_bit(by_em: Build, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 0.1]
    fit = by_em(Spec(model={"z": Categorical(3), "x": Normal(loc=By("z"), scale=By("z"))}), {"x": x})
    fit.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    np.testing.assert_array_equal(again.predict_proba({"x": x}), fit.predict_proba({"x": x}))
    np.testing.assert_array_equal(again.score_samples({"x": x}), fit.score_samples({"x": x}))
    np.testing.assert_array_equal(again.sample(9)["x"], fit.sample(9)["x"])
    assert again.data is None


def test_a_conditional_vae_of_named_columns_survives_storage(by_path: Build, tmp_path: Path) -> None:
    model = {
        "u": Input(k=2),
        "v": Input(2),
        "z": Normal(2, loc=0, scale=1),
        "x": Normal(3, loc=MLP(["z", "u", "v"], [5]), scale=1),
    }
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=(9, 3)), "u": ["a", "b", "b"] * 3, "v": random.normal(size=(9, 2)) * 30}
    fit = by_path(Spec(model=model), data, {})
    fit.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    assert again.program.dtype == fit.program.dtype
    np.testing.assert_array_equal(again.transform(data), fit.transform(data))
    np.testing.assert_array_equal(again.score_samples(data), fit.score_samples(data))


def test_everything_a_fit_knows_but_its_rows_is_stored(mixture: Fit, tmp_path: Path) -> None:
    fit = replace(
        mixture,
        log_likelihood=float("-inf"),
        run=replace(mixture.run, notes=("naïve",), collapsed=1, held_out=(-1.5, float("nan"))),
    )
    save_fit(fit, tmp_path / "fit")
    again = load(str(tmp_path / "fit"))
    assert again.spec == fit.spec
    assert again.program.schema == fit.program.schema
    for name in ("algorithm", "seed", "n_units", "log_likelihood", "elbo", "versions", "status", "modes"):
        assert getattr(again, name) == getattr(fit, name), name
    np.testing.assert_array_equal(again.history, fit.history)
    for name in ("notes", "restarts", "collapsed", "lowering"):
        assert getattr(again.run, name) == getattr(fit.run, name), name
    np.testing.assert_array_equal(again.run.held_out, [-1.5, float("nan")])
    assert str(again.certificate) == str(fit.certificate)
    assert repr(again) == repr(fit)
    np.testing.assert_array_equal(again.parameters["x"]["cov"], fit.parameters["x"]["cov"])


def test_the_folder_holds_files_that_other_programs_read(mixture: Fit, tmp_path: Path) -> None:
    mixture.save(tmp_path / "deep" / "fit")
    folder = tmp_path / "deep" / "fit"
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "history.csv"])
    assert [p.name for p in folder.parent.iterdir()] == ["fit"]

    def no_constant(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    record = json.loads((folder / "fit.json").read_text(), parse_constant=no_constant)
    assert set(record["sha256"]) == set(FILES)
    assert record["schema"]["roles"] == {"observed": ["x"], "latent": ["z"], "inputs": []}
    assert record["history"] == [-50.0, "nan", -40.25]
    assert (folder / "history.csv").read_text().splitlines()[:2] == ["step,objective", "1,-50.0"]


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_altered_or_lost_file_is_named(mixture: Fit, tmp_path: Path, name: str) -> None:
    mixture.save(tmp_path / "fit")
    file = tmp_path / "fit" / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-9] ^= 1
    for damaged in (b"", whole[:10], whole[:-8], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(FitError, match=str(file)):
            load(tmp_path / "fit")
    file.unlink()
    with pytest.raises(FitError, match=f"{file}: is missing"):
        load(tmp_path / "fit")
    file.write_bytes(whole)
    assert load(tmp_path / "fit").n_units == 40


@pytest.mark.parametrize(
    "alter",
    [
        lambda record: record.update(seed=4),
        lambda record: record["history"].append(0.0),
        lambda record: record["certificate"]["lines"][0].update(ok=False),
        lambda record: record["sha256"].pop("fit.json"),
        lambda record: record["sha256"].update({"spec.yaml": "0" * 64}),
        lambda record: record.update(format=2),
        lambda record: record.pop("schema"),
    ],
)
def test_a_record_altered_by_hand_is_found(
    mixture: Fit, tmp_path: Path, alter: Callable[..., object]
) -> None:
    mixture.save(tmp_path / "fit")
    file = tmp_path / "fit" / "fit.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record))  # other white space is the same record
    load(tmp_path / "fit")
    alter(record)
    file.write_text(json.dumps(record))
    with pytest.raises(FitError, match=str(file)):
        load(tmp_path / "fit")


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", '{"format": 1}', '{"format": 1, "sha256": []}', "[" * 100_000]
)
def test_a_record_that_is_something_else_is_no_traceback(mixture: Fit, tmp_path: Path, text: str) -> None:
    mixture.save(tmp_path / "fit")
    (tmp_path / "fit" / "fit.json").write_text(text)
    with pytest.raises(FitError, match=r"fit\.json: is damaged"):
        load(tmp_path / "fit")


def test_what_is_no_folder_is_no_fit(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="does not exist"):
        load(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FitError, match="not a folder"):
        load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FitError, match=r"fit\.json: is missing"):
        load(tmp_path / "empty")


def test_a_fit_is_written_over_only_when_asked_and_only_over_a_fit(mixture: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "fit"
    mixture.save(folder)
    for attempt in (lambda: check_writable(folder), lambda: mixture.save(folder)):
        with pytest.raises(FitError, match=r"exists already; .*--replace"):
            attempt()
    check_writable(folder, replace=True)
    replace(mixture, seed=99).save(folder, replace=True)
    assert load(folder).seed == 99
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    with pytest.raises(FitError, match="is not a saved fit"):
        mixture.save(tmp_path / "thesis", replace=True)
    (tmp_path / "empty").mkdir()
    mixture.save(tmp_path / "empty", replace=True)
    assert load(tmp_path / "empty").seed == 3


def test_a_place_that_cannot_be_written_is_found_before_fitting(mixture: Fit, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for attempt in (check_writable, mixture.save):
        with pytest.raises(FitError, match="cannot be written"):
            attempt(tmp_path / "file" / "fit")
    with pytest.raises(FitError, match="cannot be written"):
        check_writable(tmp_path / ("long" * 100))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_link_to_a_fit_is_followed(mixture: Fit, tmp_path: Path) -> None:
    mixture.save(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    replace(mixture, seed=8).save(tmp_path / "link", replace=True)
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "real").seed == load(tmp_path / "link").seed == 8


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_fit(
    mixture: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    mixture.save(tmp_path / "fit")
    rename, calls = os.rename, []

    def sometimes(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", sometimes)
    with pytest.raises(FitError, match="No space left on device; nothing has changed"):
        replace(mixture, seed=99).save(tmp_path / "fit", replace=True)
    assert load(tmp_path / "fit").seed == 3
    assert [p.name for p in tmp_path.iterdir()] == ["fit"]


def test_a_declaration_that_its_file_could_not_give_back_is_refused_on_saving(
    by_path: Build, tmp_path: Path
) -> None:
    numbers = tuple(np.random.default_rng(0).normal(size=900).tolist())  # longer than an entry may be
    spec = Spec(model={"z": Categorical(2), "x": Normal(900, loc=numbers, scale=By("z"))})
    fit = by_path(spec, {"x": np.random.default_rng(0).normal(size=(4, 900))}, {})
    with pytest.raises(FitError, match="cannot be read back, so nothing is saved"):
        fit.save(tmp_path / "fit")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing_behind(
    mixture: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FitError, match="No space left"):
        mixture.save(tmp_path / "fit")
    assert not list(tmp_path.iterdir())


CRASH = """
import os, sys
from dataclasses import replace
from pathlib import Path
from ppl_gen.results.storage import load

step, folder = int(sys.argv[1]), Path(sys.argv[2])
fit, rename, fsync, calls = load(folder), os.rename, os.fsync, []

def counted(action):
    def act(*args):
        calls.append(args)
        if len(calls) == step:
            os._exit(7)  # as a power cut: no handler runs
        return action(*args)
    return act

os.rename, os.fsync = counted(rename), counted(fsync)
replace(fit, seed=99).save(folder, replace=True)
"""


@pytest.mark.parametrize("step", [1, 4, 5, 6, 7, 8])
def test_a_crash_while_replacing_leaves_a_whole_fit(mixture: Fit, tmp_path: Path, step: int) -> None:
    """Steps 1–5 flush four files and their folder, 6 and 7 rename, 8 flushes the parent."""
    mixture.save(tmp_path / "fit")
    ended = subprocess.run([sys.executable, "-c", CRASH, str(step), str(tmp_path / "fit")], check=False)
    assert ended.returncode == 7
    assert load(tmp_path / "fit").seed == (99 if step == 8 else 3)
    replace(mixture, seed=5).save(tmp_path / "fit", replace=True)
    assert load(tmp_path / "fit").seed == 5
