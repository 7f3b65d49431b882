"""Student's t where its df says little, where rows lie far out, and in single precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize

from ppl_gen.data.reading import read_table
from ppl_gen.declare.nodes import Categorical, MultivariateStudentT, StudentT
from ppl_gen.declare.phrasebook import gaussian_mixture, student_t_mixture
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.coordinates import Coordinates, at_an_end
from ppl_gen.infer.starts import Starts
from ppl_gen.infer.status import Status
from ppl_gen.program.families.student_t import log_constant
from ppl_gen.program.program import compile_spec

ONE = Spec(model={"x": StudentT()})
CLASSES = {"full": MultivariateStudentT(df=By("z"), loc=By("z"), cov=By("z"))}
CLASSES["diagonal"] = StudentT(df=By("z"), loc=By("z"), scale=By("z"))


def clusters(seed: int, n: int = 300, d: int = 2, apart: float = 3.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) + np.where(np.arange(n) < n // 2, -apart, apart)[:, None]


def with_outliers(seed: int, count: int) -> np.ndarray:
    """Some rows 500 standard deviations away, each in its own direction."""
    x = clusters(seed)
    away = np.random.default_rng(seed + 1).normal(size=(count, 2))
    x[:count] = 500 * away / np.linalg.norm(away, axis=1, keepdims=True)
    return x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_density_keeps_its_digits_whatever_df(dtype):
    df = torch.logspace(-1, 6, 300, dtype=torch.float64).to(dtype)
    half = df.double() / 2
    eps = 64 * torch.finfo(dtype).eps  # the largest log Γ of which there is a difference
    two, four = log_constant(df, 2).double(), log_constant(df, 4).double()
    # Γ(h + 1) = h Γ(h) leaves −log 2π of the first whatever df, and (1 + 1/h)/(2π)² in the second.
    torch.testing.assert_close(two, torch.full_like(two, -math.log(2 * math.pi)), rtol=0, atol=eps)
    exact = torch.log1p(1 / half) - 2 * math.log(2 * math.pi)
    torch.testing.assert_close(four, exact, rtol=0, atol=eps)
    # Γ(h + ½)/Γ(h) times Γ(h + 1)/Γ(h + ½) is h; of df + 1 as this precision has it.
    more = df + 1
    pair = log_constant(df).double() + log_constant(more).double()
    pair = pair + 0.5 * (df.double() * math.pi).log() + 0.5 * (more.double() * math.pi).log()
    torch.testing.assert_close(pair, half.log(), rtol=eps, atol=eps)


@pytest.mark.parametrize("kind", CLASSES)
def test_single_precision_with_holes_climbs_to_within_rounding(kind):
    for seed in (0, 1):
        random = np.random.default_rng(seed)
        x = random.normal(size=(300, 3)) + np.where(np.arange(300) < 150, -3, 3)[:, None]
        x[:, :2][random.uniform(size=(300, 2)) < 0.2] = np.nan
        spec = Spec(model={"z": Categorical(2), "x": CLASSES[kind]})
        found = fit(spec, {"x": x}, EM(restarts=2), dtype=torch.float32)
        rounded = (
            8 * np.finfo(np.float32).eps * abs(found.log_likelihood)
        )  # units in the last place of the sum
        assert np.diff(found.history).min() >= -rounded


def test_a_flat_maximum_of_df_is_reached_and_not_crawled_to():
    x = np.random.default_rng(0).normal(-4, 1, (200, 2))[:, :1]
    found = fit(ONE, {"x": x})

    def worse(p: np.ndarray, df: float) -> float:
        return -float(stats.t.logpdf(x[:, 0], df, p[0], np.exp(p[1])).sum())

    def profile(p: np.ndarray) -> float:
        return float(minimize(worse, [-4, 0], (np.exp(p[0]),), "BFGS", options={"gtol": 1e-9}).fun)

    best = minimize(profile, [4.6], method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-10})
    assert found.status is Status.CONVERGED
    assert found.log_likelihood == pytest.approx(-best.fun, abs=1e-8)
    # Near the maximum the log-likelihood bends by 0.026 a unit of log df: 1e-8 nats are 1e-3.
    assert np.log(found.parameters["x"]["df"][0]) == pytest.approx(best.x[0], abs=2e-3)


def test_df_without_end_is_said_to_be_and_leaves_a_normal():
    x = np.random.default_rng(0).uniform(size=(400, 1))
    found = fit(ONE, {"x": x})
    assert found.status is Status.BOUNDARY
    assert any("1 of 1 df of x are as good as infinite" in note for note in found.run.notes)
    assert found.log_likelihood == pytest.approx(stats.norm.logpdf(x, x.mean(), x.std()).sum(), abs=1e-3)
    heavy = fit(ONE, {"x": stats.t.rvs(4, size=(400, 1), random_state=1)})
    assert heavy.status is Status.CONVERGED
    assert not any("df" in note for note in heavy.run.notes)


def test_df_is_as_good_as_infinite_where_the_rows_tell_a_t_from_a_normal_by_a_thousandth_of_a_nat():
    law = stats.t(300)
    nearest = stats.norm(0, law.std())  # the normal of highest expected log-density has its variance
    gap = quad(lambda x: law.pdf(x) * (law.logpdf(x) - nearest.logpdf(x)), -12, 12, epsabs=1e-14)[0]
    rows = 1e-3 / gap
    program = compile_spec(ONE, {"x": np.array([[0.0], [1.0], [3.0]])})
    draw = program.generative.draws["x"]
    table = torch.tensor([300.0]).log()
    # The parabola in 1/df is good to some per cent at 1/300.
    assert at_an_end(draw, "df", draw.slots["df"], table, 0.9 * rows)[1].all()
    assert not at_an_end(draw, "df", draw.slots["df"], table, 1.1 * rows)[1].any()
    assert at_an_end(draw, "df", draw.slots["df"], torch.tensor([0.1]).log(), rows)[0].all()


def test_an_extrapolation_stays_in_the_range_of_df():
    program = compile_spec(ONE, {"x": np.array([[0.0], [1.0], [3.0]])})
    state = dict(program.state_dict())
    coordinates = Coordinates(program, state)
    for log_df, kept in ((40.0, 1e6), (-40.0, 0.1), (1.5, math.exp(1.5))):
        state["generative.layers.x:df.table"] = torch.full((1,), log_df, dtype=torch.float64)
        point = coordinates.flatten({path: value.unsqueeze(0) for path, value in state.items()})
        inside = coordinates.unflatten(coordinates.inside(point))
        assert float(inside["generative.layers.x:df.table"].exp()) == pytest.approx(kept, rel=1e-12)
        others = [path for path in coordinates.shapes if "df" not in path]
        assert all(torch.equal(inside[path][0], state[path]) for path in others)
    two = np.vstack([np.random.default_rng(0).normal(m, 1, (200, 2)) for m in (-4, 4)])
    found = fit(student_t_mixture(2), {"x": two}, EM(restarts=10))
    assert found.parameters["x"]["df"].max() <= 1e6 * (1 + 1e-12)


@pytest.mark.parametrize(
    ("covariance", "count"),
    [("full", 1), ("full", 2), ("full", 5), ("diagonal", 2), ("diagonal", 5), ("tied", 5)],
)
def test_far_outliers_get_no_class_of_their_own(covariance, count):
    spec, x = student_t_mixture(2, covariance), with_outliers(0, count)
    found = fit(spec, {"x": x}, EM(restarts=12))
    clean = fit(spec, {"x": x[count:]}, EM(restarts=1)).parameters  # where the clusters are
    known = fit(spec, {"x": x}, EM(init=clean))
    assert found.log_likelihood >= known.log_likelihood - 1e-6
    assert np.min(found.parameters["z"]["probs"]) > 0.4


def test_starts_of_heavy_tails_divide_the_bulk_of_the_rows_and_those_of_normals_are_untouched():
    x = with_outliers(3, 5)
    x[7, 0] = np.nan
    heavy, normal = (
        Starts(compile_spec(spec, table.schema), table, "k-means++", 9, 0)
        for spec in (student_t_mixture(2), gaussian_mixture(2))
        for table in (read_table({"x": x}, spec),)
    )
    shares = heavy.shares(0, 300)
    assert shares is not None
    assert float(shares[::3, :5].max()) < 0.01  # 500 standard deviations, the fences are at 22
    assert float(shares[:, 5:].min()) == 1
    # By their nearest centre, at the fences, the outliers take the larger part of a class with them in no start.
    smaller = torch.stack([heavy.labels[:, 5:].double().mean(1), 1 - heavy.labels[:, 5:].double().mean(1)])
    assert float(smaller.amin(0)[::3].median()) > 0.3
    assert normal.shares(0, 300) is None


def test_outliers_are_told_from_rows_by_columns_that_are_mostly_one_value_too():
    x = clusters(1)
    x[:200, 0], x[200, 0], x[:, 1] = 0.0, 1e9, np.where(np.arange(300) < 290, np.nan, x[:, 1])
    table = read_table({"x": x}, student_t_mixture(2))
    inside = Starts(compile_spec(student_t_mixture(2), table.schema), table, "k-means++", 2, 0).inside
    assert inside is not None
    assert bool(inside.isfinite().all())
    assert inside.argmin() == 200
