"""What `select` says of a grid, against scikit-learn, SciPy and brute force."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal, norm
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold

from ppl_gen import (
    EM,
    By,
    Categorical,
    DataError,
    FitError,
    Normal,
    Spec,
    SpecError,
    Status,
    fit,
    gaussian_mixture,
    poisson_mixture,
    select,
)
from ppl_gen.certify.certificate import Certificate, Line
from ppl_gen.infer.run import Mode
from ppl_gen.selecting import choosing
from ppl_gen.selecting.criteria import doubts
from ppl_gen.selecting.folds import Fold, joined

DATA = Path(__file__).parents[1] / "examples" / "data"
FAITHFUL = pd.read_csv(DATA / "faithful.csv").to_numpy(float)
QUICK = EM(restarts=3, lowering="eager")
NORMALS = Spec(model={"z": Categorical(2), "x": Normal(loc=By("z"), scale=By("z"))})


def clumps(n: int = 30, apart: float = 9.0) -> dict[str, np.ndarray]:
    """Two normal clumps on a line, n rows each."""
    noise = np.random.default_rng(0).normal(size=(2 * n, 1))
    return {"x": noise + np.repeat([[0.0], [apart]], n, axis=0)}


@pytest.fixture(scope="module")
def faithful():
    return select(
        gaussian_mixture(2), FAITHFUL, {"z.k": range(1, 4), "x.cov": [By("z"), "Free()"]}, workers=1
    )


def test_the_bic_of_every_candidate_is_scikit_learns_at_the_same_maximum(faithful):
    for (_, row), own in zip(faithful.table.iterrows(), faithful.fits, strict=True):
        tied = row["x.cov"] == "Free()"
        found = own.parameters
        stock = GaussianMixture(
            row["z.k"],
            covariance_type="tied" if tied else "full",
            reg_covar=0,
            tol=1e-12,
            max_iter=2000,
            weights_init=found["z"]["probs"],
            means_init=found["x"]["loc"],
            precisions_init=np.linalg.inv(found["x"]["cov"]),
        ).fit(FAITHFUL)
        # From our maximum its EM may still climb by what the tolerance of ours leaves, 1e-8 nats a row and step.
        assert row["bic"] == pytest.approx(stock.bic(FAITHFUL), abs=1e-3)
        assert row["aic"] == pytest.approx(stock.aic(FAITHFUL), abs=1e-3)


def test_the_best_of_old_faithful_is_mclusts_and_has_its_published_bic(faithful):
    best = faithful.table.iloc[faithful.chosen]
    assert (best["z.k"], best["x.cov"]) == (3, "Free()")  # EEE,3
    assert faithful.best is faithful.fits[faithful.chosen]
    # mclust prints -2314.386, having stopped 0.04 nats below the maximum.
    assert 2314.386 - 0.1 < best["bic"] < 2314.386
    full = faithful.table.query("`z.k` == 2 and `x.cov` == 'By(z)'")["bic"].item()
    assert full == pytest.approx(2322.19, abs=5e-3)  # VVV,2


def test_icl_adds_twice_the_entropy_of_the_memberships(faithful):
    for (_, row), own in zip(faithful.table.iterrows(), faithful.fits, strict=True):
        r = own.predict_proba(FAITHFUL)
        entropy = -np.sum(r[r > 0] * np.log(r[r > 0]))
        assert row["icl"] == pytest.approx(row["bic"] + 2 * entropy, rel=1e-10)


def test_icl_of_two_latents_takes_their_joint_posterior():
    spec = Spec(model={"a": Categorical(2), "b": Categorical(2), "x": Normal(1, loc=By(["a", "b"]), scale=1)})
    x = np.random.default_rng(0).normal(0, 2, size=(40, 1))
    found = select(spec, {"x": x}, algorithm=EM(restarts=1, max_steps=5), criterion="icl")
    own = found.best.parameters
    joint = own["a"]["probs"][:, None] * own["b"]["probs"] * norm.pdf(x[:, :, None], own["x"]["loc"][..., 0])
    r = joint / joint.sum((1, 2), keepdims=True)  # (N, A, B)
    assert found.table["icl"][0] == pytest.approx(found.best.bic - 2 * np.sum(r * np.log(r)), rel=1e-10)


def test_the_held_out_likelihood_is_that_of_scikit_learns_folds_done_by_hand():
    x = FAITHFUL[:83]
    found = select(gaussian_mixture(1), x, criterion="cv", folds=4, seed=3, algorithm=QUICK)
    by_row = np.empty(len(x))
    for train, test in KFold(4, shuffle=True, random_state=3).split(x):
        normal = multivariate_normal(x[train].mean(0), np.cov(x[train].T, bias=True))
        by_row[test] = normal.logpdf(x[test])
    assert found.table["cv"][0] == pytest.approx(by_row.mean(), rel=1e-9)
    assert found.table["cv_se"][0] == pytest.approx(by_row.std(ddof=1) / np.sqrt(len(x)), rel=1e-9)


def test_weights_count_as_rows_written_out_would_in_every_criterion():
    values, counts = np.arange(8.0)[:, None], np.array([9, 16, 14, 9, 6, 8, 2, 1])
    start = {"z": {"probs": [0.5, 0.5]}, "x": {"rate": [[1.5], [4.0]]}}
    options = {"criterion": "cv", "folds": 3, "algorithm": EM(init=start, max_steps=30, lowering="eager")}
    weighted = select(poisson_mixture(2), {"x": values}, weights=counts, **options)
    written = select(poisson_mixture(2), {"x": np.repeat(values, counts, axis=0)}, **options)
    for name in ("log_likelihood", "aic", "bic", "icl", "cv", "cv_se"):
        np.testing.assert_allclose(weighted.table[name], written.table[name], rtol=1e-10, err_msg=name)


def test_a_candidate_that_fails_without_a_fold_is_reported_and_not_chosen():
    # Without one of the two rows at 50 the other is a class of its own, and its variance has no maximum.
    x = np.append(np.random.default_rng(0).normal(size=10), [50.0, 51.0])[:, None]
    one = EM(restarts=1, lowering="eager")
    found = select(NORMALS, {"x": x}, {"z.k": [1, 2]}, criterion="cv", folds=12, algorithm=one)
    single, double = found.table.to_dict("records")
    assert double["bic"] < single["bic"]
    assert np.isnan(double["cv"])
    assert "without fold" in double["warnings"]
    assert "of 12: every restart collapsed" in double["warnings"]
    assert np.isfinite(single["cv"])
    assert found.chosen == 0


def test_the_bootstrap_test_finds_the_number_of_clumps_and_then_stops():
    found = select(
        gaussian_mixture(1, "tied"),
        clumps(),
        {"z.k": [1, 2, 3, 4]},
        criterion="blrt",
        draws=19,
        algorithm=EM(restarts=3, max_steps=25, lowering="eager"),
        workers=1,
    )
    assert found.best.spec.model["z"] == Categorical(2)
    p, loglik = found.table["blrt_p"], found.table["log_likelihood"]
    assert p[1] == 1 / 20  # no sample of one class comes near
    assert p[2] > 0.05
    assert np.isnan(p[3])  # not asked for any more
    np.testing.assert_allclose(found.table["blrt"][1:3], 2 * np.diff(loglik)[:2])


def test_a_grid_has_every_combination_and_a_corner_that_makes_no_sense_is_a_row_with_its_reason():
    found = select(NORMALS, clumps(), {"z.k": [1, 0], "x.scale": ["1", "Gone(z)"]}, algorithm=QUICK)
    assert found.settings == ("z.k", "x.scale")
    assert found.table[["z.k", "x.scale"]].to_numpy().tolist() == [
        [1, "1"],
        [1, "Gone(z)"],
        [0, "1"],
        [0, "Gone(z)"],
    ]
    assert found.table["status"].tolist() == ["converged", "failed", "failed", "failed"]
    assert "Gone" in found.table["warnings"][1]
    assert "SpecError" in str(found)
    assert found.fits[1] is None
    assert found.chosen == 0


def test_whole_declarations_are_candidates_by_name_or_by_what_differs():
    by_name = select({"wide": NORMALS, "same": NORMALS.replace("x.scale", 1)}, clumps(), algorithm=QUICK)
    assert by_name.table["model"].tolist() == ["wide", "same"]
    listed = select([NORMALS, NORMALS.replace("x.scale", 1)], clumps(), algorithm=QUICK)
    assert listed.table["model"][1] == "x: Normal(loc=By(z), scale=1)"
    np.testing.assert_array_equal(by_name.table["bic"], listed.table["bic"])


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"grid": {"z.k": [2], "y.k": [1]}}, SpecError, "the model has no 'y'"),
        ({"grid": {"z.k": 3}}, SpecError, "'z.k' needs a list of values, not 3"),
        ({"grid": {"z.k": []}}, SpecError, "'z.k' has no value"),
        ({"grid": {"z.k": [1, 1]}}, SpecError, "'z.k' has 1 twice"),
        ({"data": {"x": [["a"], ["b"]]}}, DataError, "x"),
        ({"criterion": "dic"}, FitError, "aic, bic, icl, cv, blrt, not 'dic'"),
        ({"criterion": "blrt", "grid": {"z.k": [1, 2], "x.scale": [1]}}, FitError, "a grid of one size"),
        ({"criterion": "cv", "folds": 1}, FitError, "from 2"),
        ({"criterion": "cv", "folds": 61}, FitError, "fewer folds"),
        ({"workers": 0}, FitError, "workers"),
    ],
)
def test_what_no_candidate_can_be_fitted_with_is_an_error_that_says_so(options, kind, said):
    arguments = {"spec": NORMALS, "data": clumps(), "algorithm": QUICK} | options
    with pytest.raises(kind, match=said):
        select(arguments.pop("spec"), arguments.pop("data"), arguments.pop("grid", None), **arguments)


def test_densities_and_probabilities_are_not_compared_without_a_word():
    counts = {"x": np.random.default_rng(0).poisson(4.0, (30, 1))}
    with pytest.warns(UserWarning, match="density in some candidates and probabilities in others"):
        select(
            poisson_mixture(1), counts, {"x": ["Poisson(rate=By(z))", "Normal(loc=By(z))"]}, algorithm=QUICK
        )


def test_processes_give_the_same_numbers_and_do_not_run_the_users_script_again(tmp_path, monkeypatch):
    script, mark = tmp_path / "script.py", tmp_path / "ran"
    script.write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    grid = {"z.k": [1, 2, 0]}
    alone, apart = (select(NORMALS, clumps(), grid, algorithm=QUICK, workers=count) for count in (1, 2))
    pd.testing.assert_frame_equal(alone.table, apart.table, check_exact=True)
    np.testing.assert_array_equal(alone.best.predict_proba(clumps()), apart.best.predict_proba(clumps()))
    assert str(alone.best.certificate) == str(apart.best.certificate)
    assert sys.modules["__main__"].__file__ == str(script)
    assert not mark.exists()


def test_ctrl_c_keeps_what_was_done(monkeypatch):
    usual, calls = choosing.fit_candidate, []

    def interrupted(shared, spec):
        calls.append(spec)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(shared, spec)

    monkeypatch.setattr(choosing, "fit_candidate", interrupted)
    found = select(NORMALS, clumps(), {"z.k": [1, 2, 3]}, algorithm=QUICK, workers=1)
    assert len(calls) == 2
    assert found.table["status"].tolist()[0::2] == ["converged", "not run"]
    assert "interrupted" in str(found)


def test_doubtful_fits_say_why():
    own = fit(NORMALS, clumps(), QUICK)
    assert doubts(own) == []
    run = replace(
        own.run,
        status=Status.MAX_STEPS,
        modes=(Mode(-1.0, 1), Mode(-2.0, 6)),
        finished=7,
        restarts=9,
        collapsed=2,
    )
    lines = (
        Line("gap", False, -3.0, 0.1, "below zero"),
        Line("boundaries", None, 1.0, None, "z=1 is empty (share 1e-09)"),
    )
    said = doubts(replace(own, run=run, certificate=Certificate(lines)))
    for word in (
        "stopped at max_steps",
        "1 of 7 restarts reached",
        "2 of 9 restarts collapsed",
        "failed: gap",
        "z=1 is empty",
    ):
        assert sum(word in one for one in said) == 1


def test_how_a_fit_ended_is_said_in_the_words_of_its_status():
    own = fit(NORMALS, clumps(), QUICK)
    for status in (Status.PLATEAU, Status.BOUNDARY, Status.MAX_STEPS):
        assert doubts(replace(own, run=replace(own.run, status=status))) == [status.value]
    folds = [Fold(np.zeros(3), np.ones(3), status) for status in (Status.CONVERGED, Status.PLATEAU)]
    assert joined([*folds, folds[1]]).warnings == ("without fold 2, 3: stopped on a plateau",)


def test_the_picture_shows_every_number_and_rings_the_best(faithful, tmp_path):
    figure = faithful.plot(tmp_path / "criterion.svg")
    assert (tmp_path / "criterion.svg").stat().st_size > 1000
    (axes,) = figure.axes
    drawn = {tuple(point) for line in axes.lines for point in np.asarray(line.get_xydata()) if len(point)}
    assert {*zip(faithful.table["z.k"], faithful.table["bic"], strict=True)} <= drawn
    (ring,) = (line for line in axes.lines if line.get_label() == "best")
    best = faithful.table.iloc[faithful.chosen]
    np.testing.assert_array_equal(ring.get_xydata(), [[best["z.k"], best["bic"]]])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"x.cov=By(z)", "x.cov=Free()", "best"} <= set(labels)


def test_the_table_for_a_terminal_names_the_best_and_what_follows_it(faithful):
    lines = str(faithful).splitlines()
    assert lines[0].split() == ["z.k", "x.cov", "log-lik.", "free", "AIC", "BIC", "ICL", "hits", "status"]
    (starred,) = (line for line in lines if line.startswith("*"))
    assert starred.split()[1:3] == ["3", "Free()"]
    assert "best by BIC: z.k=3, x.cov=Free(), 2314.30; next z.k=2, x.cov=By(z), 7.90 behind" in lines
