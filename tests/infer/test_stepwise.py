"""Stepwise EM: where it ends, what it is refused, what its history says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from ppl_gen import (
    EM,
    MLP,
    By,
    Categorical,
    FitError,
    Input,
    Linear,
    MultivariateNormal,
    Normal,
    Rows,
    Spec,
    Status,
    StepwiseEM,
    fit,
)
from ppl_gen.cli.options import algorithm
from ppl_gen.data import stream

N = 20_000
R = np.random.default_rng(2)
SHARES, CENTRES = np.array([0.5, 0.3, 0.2]), np.array([[0.0, 0.0], [4.0, 1.0], [0.0, 5.0]])
X = CENTRES[R.choice(3, N, p=SHARES)] + R.normal(size=(N, 2)) * [1.0, 0.7]
FULL = Spec(model={"z": Categorical(3), "x": MultivariateNormal(loc=By("z"), cov=By("z"))})
QUICK = StepwiseEM(epochs=2, batch_size=500, restarts=3)


@pytest.fixture(scope="module")
def maximum() -> float:
    """The maximum of the log-likelihood, by scikit-learn."""
    peer = GaussianMixture(3, tol=1e-9, max_iter=1000, n_init=3, random_state=0, reg_covar=0)
    return float(peer.fit(X).score(X) * N)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_two_passes_end_at_the_maximum_scikit_learn_finds(tmp_path: Path, maximum: float, where: str) -> None:
    np.save(tmp_path / "x.npy", X)
    data = X if where == "memory" else Rows(tmp_path / "x.npy", chunk_rows=4_000)
    found = fit(FULL, data, QUICK)
    # 17 parameters: where they are a standard error off, the log-likelihood is 17/2 below its maximum on average.
    # The tolerance is a tenth of that, so that what is left cannot be seen beside the data's own uncertainty.
    assert found.n_parameters == 17
    assert maximum - 17 / 20 <= found.log_likelihood <= maximum + 1e-3
    assert found.status is Status.EPOCHS_DONE
    assert found.certificate.ok, str(found.certificate)
    np.testing.assert_allclose(found.parameters["x"]["loc"], CENTRES, atol=0.1)
    assert found.history.shape == (3,)  # an epoch each, and all rows at the end
    assert found.history[-1] == found.log_likelihood


def test_a_file_sorted_by_class_is_mixed_before_it_is_learned_from(
    tmp_path: Path, maximum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", X[np.argsort(X[:, 1])])
    monkeypatch.setattr(stream, "POOL_BYTES", X.nbytes // 5)
    found = fit(FULL, Rows(tmp_path / "x.npy", chunk_rows=2_000), QUICK)
    assert maximum - found.log_likelihood <= 17 / 2


def test_rows_count_by_their_weight() -> None:
    few, counts = X[:3_000], R.integers(0, 4, 3_000)
    spec = Spec(model={"z": Categorical(3), "x": Normal(loc=By("z"), scale=By("z"))})
    start = {"z": {"probs": SHARES}, "x": {"loc": CENTRES, "scale": np.ones((3, 2))}}
    weighted = fit(spec, few, StepwiseEM(epochs=4, batch_size=200, init=start), weights=counts)
    peer = fit(spec, np.repeat(few, counts, axis=0), EM(init=start))
    assert weighted.n_units == counts.sum()
    assert 0 <= peer.log_likelihood - weighted.log_likelihood <= peer.n_parameters / 20


def test_the_same_seed_gives_the_same_fit_and_a_ragged_last_batch_does_no_harm() -> None:
    few = X[:1_234]
    first, second = (fit(FULL, few, StepwiseEM(batch_size=100, restarts=1), seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.parameters["x"]["loc"], second.parameters["x"]["loc"])
    one = fit(FULL, few, StepwiseEM(epochs=1, batch_size=10_000, restarts=1), seed=3)
    assert np.isfinite(one.log_likelihood)


def test_what_has_no_closed_m_step_is_refused_with_the_reason() -> None:
    latent = Spec(model={"u": Normal(1, loc=0, scale=1), "x": Normal(2, loc=Linear("u"))})
    with pytest.raises(FitError, match="StepwiseEM cannot fit this model: 'u' is a continuous latent"):
        fit(latent, X, StepwiseEM())
    curve = Spec(model={"u": Input(1), "x": Normal(1, loc=MLP("u", [3]))})
    with pytest.raises(FitError, match=r"x\.loc = .* has no closed-form M-step"):
        fit(curve, {"u": X[:, :1], "x": X[:, 1:]}, StepwiseEM())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"decay": 0.5}, "decay must be above 0.5"),
        ({"decay": 1.1}, "decay must be above 0.5"),
        ({"offset": -1}, "offset must be a number from 0"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"init": "kmeans"}, "init must be one of"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(FitError, match=said):
        StepwiseEM(**options)  # type: ignore[arg-type]


def test_the_algorithm_reads_as_text() -> None:
    assert algorithm("StepwiseEM(epochs=3)") == StepwiseEM(epochs=3)
