"""A scale that would fall to 0 is held at a share of its column's spread, and the fit says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from ppl_gen import (
    EM,
    MLP,
    SVI,
    Fit,
    Free,
    Input,
    Linear,
    MultivariateNormal,
    Normal,
    Spec,
    StudentT,
    fit,
)
from ppl_gen.results.storage import load

R = np.random.default_rng(0)
N = 200
X = R.normal(size=(N, 2)) * [1.0, 3.0]
KNOWN = X * [1, 0]  # the location: it meets the first column exactly, and tells nothing of the second
STEEP = SVI(epochs=150, batch_size=50, learning_rate=0.05)


def fitted(law: type, algorithm: SVI | EM = STEEP, known: Any = KNOWN, **how: Any) -> Fit:
    spec = Spec(model={"u": Input(2), "x": law(2, loc="u", **how)})
    return fit(spec, {"u": known, "x": X}, algorithm, seed=1)


@pytest.mark.parametrize(
    ("law", "how"),
    [
        (Normal, {"scale": Free()}),
        (Normal, {"scale": (Free(), 3.0)}),
        (Normal, {"scale": MLP("u", [8])}),
        (Normal, {"scale": MLP("u", [8], transform="softplus")}),
        (MultivariateNormal, {"cov": Free()}),
        (MultivariateNormal, {"cov": MLP("u", [8])}),
    ],
    ids=["table", "partly written", "network", "softplus", "matrix", "matrix of a network"],
)
def test_a_scale_stops_at_its_share_of_the_columns_spread_and_the_fit_says_whose(
    law: type, how: dict[str, Any]
) -> None:
    found = fitted(law, **how)
    assert found.run.floored == ("x[0]",)
    assert any(note.startswith("scale held at its floor: x[0];") for note in found.run.notes)
    (line,) = [line for line in found.certificate.lines if line.name == "boundaries"]
    assert "the variance of x[0] is at its floor" in line.text
    assert found.certificate.ok, str(found.certificate)  # the second opinion knows of the floor
    # The first column's density is that of its floor; the second's is at most that of its own spread's maximum,
    # or a bit more where a network of the other column fits noise.
    first = stats.norm(scale=1e-4 * X[:, 0].std()).logpdf(0) * N
    second = stats.norm(scale=np.sqrt((X[:, 1] ** 2).mean())).logpdf(X[:, 1]).sum()
    assert found.log_likelihood - first == pytest.approx(second, abs=15)


def test_one_scale_for_all_columns_stops_at_the_share_of_their_mean_spread() -> None:
    least = 1e-4 * np.sqrt((X.std(0) ** 2).mean())
    for scale in (Free(dim=1), MLP("u", [8], dim=1)):
        found = fitted(Normal, known=X, scale=scale)
        assert found.run.floored == ("x[0]", "x[1]")
        assert found.log_likelihood == pytest.approx(2 * N * stats.norm(scale=least).logpdf(0), rel=1e-5)
        assert found.certificate.ok, str(found.certificate)


def test_a_torch_optimisers_steps_end_at_the_floor_too_and_a_stored_fit_knows_it(tmp_path: Any) -> None:
    found = fitted(
        Normal, SVI(epochs=150, batch_size=50, learning_rate=0.05, optimizer="adamw"), scale=Free()
    )
    assert found.parameters["x"]["scale"][0] == pytest.approx(1e-4 * X[:, 0].std(), rel=1e-5)
    found.save(tmp_path / "fit")
    assert load(tmp_path / "fit").run.floored == ("x[0]",)
    of_function = fitted(Normal, scale=MLP("u", [8]))
    of_function.save(tmp_path / "function")
    rows = {"u": KNOWN, "x": X}
    np.testing.assert_array_equal(
        load(tmp_path / "function").score_samples(rows), of_function.score_samples(rows)
    )


def test_the_floor_of_a_students_scale_leaves_room_for_outliers() -> None:
    wide = {"u": KNOWN, "x": np.where(np.arange(2 * N).reshape(N, 2) == 7, 1e6, X)}
    spec = Spec(model={"u": Input(2), "x": StudentT(2, loc="u", scale=Free(), df=2)})
    with pytest.warns(UserWarning, match="far from unit scale"):
        found = fit(spec, wide, STEEP, seed=1)
    # The outlier's spread is 7e4; a floor that is 1e-4 of it would be 7, and the scale is about 2.
    assert found.run.floored == ("x[0]",)
    assert 1.5 < found.parameters["x"]["scale"][1] < 4


def test_scales_above_the_floor_are_as_without_one_whatever_the_units() -> None:
    def maximum(unit: float) -> float:
        spec = Spec(model={"u": Input(1), "x": Normal(1, loc=Linear("u"), scale=Linear("u"))})
        return fit(spec, {"u": KNOWN[:, :1], "x": X[:, 1:] * unit}, EM(), seed=0).log_likelihood

    # A change of units changes a log-density by the logarithm of the unit, row for row.
    assert maximum(1e6) + N * np.log(1e6) == pytest.approx(maximum(1.0), abs=1e-6)
