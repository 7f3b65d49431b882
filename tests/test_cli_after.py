"""The command line after a fit: what is shown of it, refits, imputation; and that the README's commands run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from ppl_gen import bootstrap, evaluate, load
from ppl_gen.cli import app, completing
from ppl_gen.data import sources
from ppl_gen.data.stream_files import open_rows
from ppl_gen.infer.status import Status
from ppl_gen.results import rows as result_rows

ROOT = Path(__file__).parent.parent
QUICK = ("--algorithm", 'EM(restarts=3, lowering="eager")')
KINDS = """
model:
  kind: Categorical(2)
  x: Normal(loc=By(kind), scale=By(kind))
columns:
  kind: kind
  x: [low, high]
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])  # type: ignore[return-value]


def ran(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Two clumps in two columns, most rows without their kind, some cells missing; a name for each row."""
    random = np.random.default_rng(0)
    far = np.arange(60) < 40
    x = random.normal(size=(60, 2)) + np.where(far, 9.0, 0.0)[:, None]
    frame = pd.DataFrame({"name": [f"row {i}" for i in range(60)], "low": x[:, 0], "high": x[:, 1]})
    frame["kind"] = np.where(far, "far", "near")
    frame.loc[6:, "kind"] = np.where(random.random(54) < 0.7, None, frame.loc[6:, "kind"])
    frame.loc[::5, "low"] = np.nan
    return frame


@pytest.fixture(scope="module")
def folder(rows: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rows.csv and the fit of KINDS to it."""
    home = tmp_path_factory.mktemp("kinds")
    (home / "kinds.yaml").write_text(KINDS)
    rows.to_csv(home / "rows.csv", index=False)
    ran("fit", home / "kinds.yaml", home / "rows.csv", "--out", home / "fit", *QUICK)
    return home


def numbers(text: str, name: str) -> list[float]:
    """The numbers behind a parameter's name."""
    line = next(line for line in text.splitlines() if line.startswith(f"{name} "))
    return [float(word) for word in line.removeprefix(name).split()]


def test_show_gives_the_errors_of_the_library_where_it_is_given_the_rows(folder: Path) -> None:
    told = ran("show", folder / "fit", "--data", folder / "rows.csv", "--level", "0.9")
    expected = load(folder / "fit").summary(folder / "rows.csv", level=0.9)
    for name in ("kind.probs[far]", "x.loc[kind=near, low]", "x.scale[kind=far, high]"):
        own = expected.loc[name, ["estimate", "standard error", "lower", "upper"]].to_numpy(dtype=float)
        assert numbers(told, name) == pytest.approx(own, rel=6e-3)  # an error is printed to three digits


def test_show_without_rows_gives_estimates_and_says_how_errors_are_had(folder: Path) -> None:
    result = run("show", folder / "fit")
    assert result.exit_code == 0
    assert "add --data DATA" in result.stdout
    assert len(numbers(result.stdout, "kind.probs[far]")) == 1
    assert result.stderr == ""


def test_how_the_run_ended_and_which_maxima_there_are_is_told(tmp_path: Path) -> None:
    words = ("fit", "gaussian_mixture", ROOT / "examples/data/faithful.csv", "--algorithm", "EM(restarts=20)")
    told = ran(*words, "--out", tmp_path / "fit")
    assert re.search(
        r"\nrun +\d+ rises .*; \d+ evaluations of the EM map; by Aitken's estimate \S+ nats", told
    )
    for text in (told, ran("show", tmp_path / "fit")):
        assert Status.CONVERGED.value in text
        maxima = re.findall(r"^ +(-\d+\.\d{4}) +(\d+)  ([\d. ]+)$", text, re.MULTILINE)
        found = load(tmp_path / "fit").modes
        assert len(found) > 1
        assert [(float(value), int(hits)) for value, hits, _ in maxima] == [
            (round(mode.log_likelihood, 4), mode.hits) for mode in found
        ]
        for (*_, shares), mode in zip(maxima, found, strict=True):
            assert [float(share) for share in shares.split()] == [round(share, 3) for share in mode.shares]


def test_rows_other_than_the_fit_s_own_are_refused(folder: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.head(20).to_csv(tmp_path / "few.csv", index=False)
    rows.drop(columns="kind").to_csv(tmp_path / "unlabelled.csv", index=False)
    for file, said in (
        ("few.csv", "count 20, and the fit was made on 60"),
        ("unlabelled.csv", "has no kind"),
    ):
        for words in (
            ("show", folder / "fit", "--data", tmp_path / file),
            ("bootstrap", folder / "fit", tmp_path / file),
        ):
            result = run(*words)
            assert result.exit_code == 2
            assert said in result.stderr


def test_errors_of_a_weighted_fit_are_those_of_the_rows_repeated(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(20), "n": 1 + np.arange(20) % 3})
    frame.to_csv(tmp_path / "table.csv", index=False)
    frame.loc[frame.index.repeat(frame["n"]), ["x"]].to_csv(tmp_path / "long.csv", index=False)
    (tmp_path / "spec.yaml").write_text("model:\n  x: Poisson(1)\n")
    ran("fit", tmp_path / "spec.yaml", tmp_path / "table.csv", "--weights", "n", "--out", tmp_path / "fit")
    shown = ("show", tmp_path / "fit", "--data")
    weighted = numbers(ran(*shown, tmp_path / "table.csv", "--weights", "n"), "x.rate")
    assert weighted == numbers(ran(*shown, tmp_path / "long.csv"), "x.rate")
    mean, n = np.average(frame["x"], weights=frame["n"]), frame["n"].sum()
    assert weighted[1] == pytest.approx(np.sqrt(mean / n), rel=5e-3)  # of a Poisson mean; three digits
    assert run(*shown, tmp_path / "table.csv").exit_code == 2  # their number is not that of the fit
    checked = ran("check", tmp_path / "spec.yaml", tmp_path / "table.csv", "--weights", "n")
    assert f"their weights sum to {n}" in checked
    assert "FAILED" not in checked


def test_bootstrap_prints_what_the_library_finds(folder: Path) -> None:
    words = (
        "bootstrap",
        folder / "fit",
        folder / "rows.csv",
        "--draws",
        20,
        "--kind",
        "resampled",
        "--seed",
        3,
    )
    told = ran(*words)
    fit = load(folder / "fit")
    expected = bootstrap(fit, 20, kind="resampled", data=folder / "rows.csv", seed=3).summary()
    name = "x.loc[kind=near, low]"
    assert "rows drawn with replacement; 20 refits, seed 3" in told
    assert numbers(told, name) == pytest.approx(expected.loc[name].to_numpy(dtype=float), rel=6e-3)


def test_imputed_files_keep_every_seen_cell_and_fill_the_others_as_the_library_does(
    folder: Path, rows: pd.DataFrame, tmp_path: Path
) -> None:
    ran("impute", folder / "fit", folder / "rows.csv", "--out", tmp_path / "complete.csv")
    complete, filled = (
        pd.read_csv(tmp_path / "complete.csv"),
        load(folder / "fit").impute(folder / "rows.csv"),
    )
    assert list(complete) == list(rows)
    assert not complete.isna().any(axis=None)
    for column in rows:
        seen = rows[column].notna()
        assert complete[column][seen].tolist() == rows[column][seen].tolist()
    assert complete["kind"].tolist() == filled["kind"].tolist()
    np.testing.assert_array_equal(complete[["low", "high"]], filled["x"])
    # Whoever lies at 9 is of the kind of those who are known to.
    assert (complete["kind"] == np.where(rows["high"] > 4.5, "far", "near")).all()


def test_several_imputations_stand_below_one_another_and_differ_in_missing_cells_only(
    folder: Path, rows: pd.DataFrame
) -> None:
    words = ("impute", folder / "fit", folder / "rows.csv", "--draws", 3, "--seed", 1)
    lines = [line.split(",") for line in ran(*words).splitlines()]
    long = pd.DataFrame(lines[1:], columns=lines[0])
    assert lines[0] == ["draw", *rows]
    assert long["draw"].tolist() == [str(draw) for draw in range(3) for _ in range(60)]
    low = long["low"].to_numpy().reshape(3, 60)
    apart = (low != low[0]).any(axis=0)
    assert apart.tolist() == rows["low"].isna().tolist()
    assert ran(*words) == ran(*words)


def test_a_leaf_that_the_file_lacks_is_imputed_behind_its_columns(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    z = random.integers(0, 2, 80)
    frame = pd.DataFrame({"a": random.normal(9.0 * z), "b": random.normal(9.0 * z)})
    frame.to_csv(tmp_path / "both.csv", index=False)
    frame[["a"]].to_csv(tmp_path / "one.csv", index=False)
    (tmp_path / "spec.yaml").write_text(
        "model:\n  z: Categorical(2)\n  a: Normal(1, loc=By(z))\n  b: Normal(1, loc=By(z))\n"
    )
    ran("fit", tmp_path / "spec.yaml", tmp_path / "both.csv", "--out", tmp_path / "fit", *QUICK)
    ran("impute", tmp_path / "fit", tmp_path / "one.csv", "--out", tmp_path / "complete.csv")
    complete = pd.read_csv(tmp_path / "complete.csv")
    assert list(complete) == ["a", "b"]
    assert np.corrcoef(complete["b"], frame["b"])[0, 1] > 0.9  # nine sd apart, one within


def test_mistakes_after_a_fit_cost_one_line_and_code_2(
    folder: Path, rows: pd.DataFrame, tmp_path: Path
) -> None:
    fit, data = folder / "fit", folder / "rows.csv"
    rows.assign(draw=1).to_csv(tmp_path / "draw.csv", index=False)
    for words, said in (
        (("impute", fit, data, "--out", data), "exists already; --replace"),
        (("impute", fit, tmp_path / "draw.csv", "--draws", 2), "has a column 'draw'"),
        (("impute", fit, "no_such.csv"), "no_such.csv: no such file"),
        (("bootstrap", fit, data, "--level", 2), "level must lie between 0 and 1"),
        (("show", fit, "--weights", "n"), "--weights n: is a column of --data, which is left out"),
        (("show", "vae", "--data", data), "vae is a declaration"),
    ):
        result = run(*words)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_a_continuous_latent_is_shown_without_errors_and_not_refitted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        "model:\n  z: Normal(1, loc=0, scale=1)\n  x: Normal(loc=Linear(z))\ncolumns:\n  x: [low, high]\n"
    )
    frame = pd.read_csv(folder / "rows.csv").dropna(subset=["low"])
    frame.to_csv(tmp_path / "whole.csv", index=False)
    words = ("fit", tmp_path / "spec.yaml", tmp_path / "whole.csv", "--algorithm", "SVI(epochs=2)")
    ran(*words, "--out", tmp_path / "fit")
    assert re.search(r"x\.loc +weight", ran("show", tmp_path / "fit"))
    assert "continuous latent" in run("bootstrap", tmp_path / "fit", tmp_path / "whole.csv").stderr
    assert ran(
        "impute", tmp_path / "fit", folder / "rows.csv"
    )  # its law is normal: E[x | what is seen] is exact


def test_the_commands_of_the_readme_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("examples", "models"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    ppl-gen (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(lines) > 8
    for line in lines:
        words = shlex.split(line, comments=True)
        assert run(*words).exit_code == 0, line


def test_a_large_file_is_imputed_chunk_by_chunk(
    folder: Path, rows: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran("impute", folder / "fit", folder / "rows.csv", "--out", tmp_path / "whole.csv")
    for module in (completing, result_rows):
        monkeypatch.setattr(module, "LARGEST_TABLE", 0)
    monkeypatch.setattr(sources, "CHUNK_BYTES", 7 * 8 * len(rows.columns))
    ran("impute", folder / "fit", folder / "rows.csv", "--out", tmp_path / "parts.csv")
    whole, parts = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(parts, whole, check_exact=False, rtol=1e-12)
    assert sum(1 for _ in open_rows(folder / "rows.csv").chunks()) > 3


def test_evaluate_prints_the_figures_of_the_library_and_writes_them_as_json(
    folder: Path, rows: pd.DataFrame, tmp_path: Path
) -> None:
    told = ran("evaluate", folder / "fit", folder / "rows.csv", "--out", tmp_path / "figures.json")
    expected = evaluate(load(folder / "fit"), folder / "rows.csv")
    assert told.rstrip() == expected.summary()
    assert json.loads((tmp_path / "figures.json").read_text()) == expected.to_dict()
    again = run("evaluate", folder / "fit", folder / "rows.csv", "--out", tmp_path / "figures.json")
    assert again.exit_code == 2
    assert "--replace" in again.stderr


def test_code_that_a_declaration_names_is_run_by_every_command_with_trust_and_by_none_without(
    tmp_path: Path,
) -> None:
    spec = tmp_path / "net.yaml"
    spec.write_text(
        "model:\n  z: Normal(1, loc=0, scale=1)\n  x: Normal(2, loc=Net('torch.nn:Linear', z), scale=1)\n"
    )
    pd.DataFrame(np.random.default_rng(0).normal(size=(20, 2)), columns=["x[0]", "x[1]"]).to_csv(
        tmp_path / "x.csv", index=False
    )
    quick = ("--algorithm", "SVI(epochs=1)")
    wanted = [
        ("show", spec),
        ("fit", spec, tmp_path / "x.csv", "--out", tmp_path / "fit", *quick),
        ("show", tmp_path / "fit"),
        ("predict", tmp_path / "fit", tmp_path / "x.csv"),
        ("sample", tmp_path / "fit", "-n", 2),
        ("evaluate", tmp_path / "fit", tmp_path / "x.csv", "--draws", 10, "--refitted-rows", 2),
    ]
    for words in wanted:
        refused = run(*words)
        assert refused.exit_code == 2
        assert "--trust" in refused.stderr
        assert refused.stderr.count("\n") == 1
        ran(*words, "--trust")
