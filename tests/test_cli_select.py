"""`ppl-gen select` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from ppl_gen.cli import app
from ppl_gen.results.storage import load

QUICK = ("--algorithm", 'EM(restarts=2, lowering="eager")', "--workers", "1")


@pytest.fixture(scope="module")
def clumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clumps on a line, the second of them at 9, as rows with counts."""
    noise = np.random.default_rng(0).normal(size=60)
    frame = pd.DataFrame({"x": noise + np.repeat([0.0, 9.0], 30), "seen": np.tile([1, 2, 3], 20)})
    path = tmp_path_factory.mktemp("data") / "clumps.csv"
    frame.to_csv(path, index=False)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["select", *map(str, words)])  # type: ignore[return-value]


def test_the_table_is_printed_the_best_named_and_everything_asked_for_written(clumps, tmp_path):
    table, picture, folder = tmp_path / "table.csv", tmp_path / "bic.png", tmp_path / "best"
    grid = ("--grid", "z.k=1..2", "--grid", "x.cov=Free()|Gone(z)", "--weights", "seen")
    result = run(
        "gaussian_mixture", clumps, *grid, *QUICK, "--out", table, "--plot", picture, "--save", folder
    )
    assert result.exit_code == 0, result.stderr or result.exception
    assert "best by BIC: z.k=2, x.cov=Free()" in result.stdout
    assert "Gone" in result.stdout.partition("warnings")[2]
    written = pd.read_csv(table)
    assert written["z.k"].tolist() == [1, 1, 2, 2]
    assert written["status"].tolist() == ["converged", "failed"] * 2
    best = load(folder)
    assert best.spec.model["z"].k == 2
    assert best.bic == pytest.approx(written["bic"].min(), rel=1e-12)
    # The n of BIC is the 120 rows that the counts stand for.
    assert best.bic == pytest.approx(-2 * best.log_likelihood + 4 * np.log(120), rel=1e-12)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_is_there_already_is_not_written_over_and_no_time_is_lost_before_that_is_said(clumps, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("mine")
    result = run("gaussian_mixture", clumps, "--grid", "z.k=1..900", "--out", table)
    assert result.exit_code == 2
    assert "--replace" in result.stderr
    assert table.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--grid", "z.k"), "NODE.OPTION=VALUES"),
        (("--grid", "z.k=4..2"), "ends before it begins"),
        (("--grid", "w.k=1..2"), "the model has no 'w'"),
        (("--grid", "z.k=1|2", "--criterion", "dic"), "aic, bic, icl, cv, blrt"),
        (("--grid", "z.k=1|2", "--plot", "bic.gif"), ".png, .svg, .pdf"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(clumps, words, said):
    result = run("gaussian_mixture", clumps, *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
