"""Numbers that others published or that an independent program gives, from the shipped data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_iris
from sklearn.mixture import GaussianMixture

from ppl_gen.declare.nodes import Categorical, MultivariateNormal, Normal
from ppl_gen.declare.phrasebook import gaussian_mixture, latent_class, poisson_mixture
from ppl_gen.declare.spec import Spec
from ppl_gen.declare.terms import By
from ppl_gen.fitting import fit
from ppl_gen.infer.algorithms import EM
from ppl_gen.infer.status import Status
from ppl_gen.results.fit import Fit

DATA = Path(__file__).parents[1] / "examples" / "data"
FAITHFUL = pd.read_csv(DATA / "faithful.csv").to_numpy(float)
GALAXIES = pd.read_csv(DATA / "galaxies.csv").to_numpy(float) / 1000
CARCINOMA = pd.read_csv(DATA / "carcinoma.csv").to_numpy()
NOTICES = pd.read_csv(DATA / "death_notices.csv")
DEATHS = np.repeat(NOTICES["deaths"], NOTICES["days"]).to_numpy(float)[:, None]
IRIS = load_iris().data


def reached(spec: Spec, data: np.ndarray, restarts: int = 20, **options: float) -> Fit:
    result = fit(spec, {"x": data}, EM(restarts=restarts, **options), seed=0)
    assert result.status in (Status.CONVERGED, Status.MAX_STEPS)
    assert np.diff(result.history).min() > -1e-8
    return result


def test_old_faithful_as_mclust_vvv_2():
    result = reached(gaussian_mixture(2), FAITHFUL)
    assert result.log_likelihood == pytest.approx(-1130.264, abs=5e-4)
    assert result.n_parameters == 11
    assert result.bic == pytest.approx(2322.19, abs=5e-3)


def test_old_faithful_as_mclust_eee_3_not_scikit_learns_local_mode():
    result = reached(gaussian_mixture(3, "tied"), FAITHFUL, restarts=40)
    assert result.log_likelihood == pytest.approx(-1126.316, abs=5e-4)
    assert result.n_parameters == 11


def test_galaxies_as_mclust_v_3():
    result = reached(gaussian_mixture(3, "diagonal"), GALAXIES)
    assert result.log_likelihood == pytest.approx(-203.1792, abs=5e-5)
    assert result.n_parameters == 8


@pytest.mark.parametrize(("classes", "log_likelihood"), [(2, -214.355), (3, -180.186)])
def test_iris_as_scikit_learn_from_many_starts(classes, log_likelihood):
    result = reached(gaussian_mixture(classes), IRIS)
    assert result.log_likelihood == pytest.approx(log_likelihood, abs=6e-4)


@pytest.mark.parametrize(("classes", "log_likelihood"), [(2, -317.2568), (3, -293.7050), (4, -289.2858)])
def test_carcinoma_as_polca(classes, log_likelihood):
    # The likelihood is nearly flat on the way: at the default tolerance four classes stop 2e-4 nats short.
    result = reached(latent_class(classes), CARCINOMA, restarts=10 * classes, tol=1e-11, max_steps=20_000)
    assert result.log_likelihood == pytest.approx(log_likelihood, abs=6e-5)


def test_carcinomas_three_classes_have_polcas_criteria_and_shares():
    result = reached(latent_class(3), CARCINOMA)
    assert result.n_parameters == 23
    assert result.aic == pytest.approx(633.41, abs=5e-3)
    assert result.bic == pytest.approx(697.1357, abs=6e-5)
    np.testing.assert_allclose(result.parameters["z"]["probs"], [0.4447, 0.3736, 0.1817], atol=6e-5)


def test_death_notices_as_hasselblad_and_squarem():
    # The mode is flat: the rise per step is below 1e-8 a row long before the parameters have four digits.
    result = reached(poisson_mixture(2), DEATHS, restarts=3, tol=1e-13, max_steps=8000)
    assert len(DEATHS) == 1096
    assert result.log_likelihood == pytest.approx(-1989.946, abs=5e-4)
    np.testing.assert_allclose(result.parameters["z"]["probs"], [0.6401, 0.3599], atol=6e-5)
    np.testing.assert_allclose(result.parameters["x"]["rate"][:, 0], [2.6634, 1.2561], atol=6e-5)


def start(covariance: str) -> dict[str, np.ndarray]:
    """Weights, means and covariances of three classes, as both programs take them."""
    means = np.array([[2.0, 55.0], [3.5, 70.0], [4.5, 80.0]])
    cov = np.array([[0.3, 1.0], [1.0, 40.0]])
    full = np.stack([cov, 1.5 * cov, 0.8 * cov])
    own = {
        "full": full,
        "tied": cov,
        "diag": full.diagonal(axis1=1, axis2=2),
        "spherical": np.array([10.0, 20.0, 15.0]),
    }[covariance]
    return {"weights": np.array([0.2, 0.5, 0.3]), "means": means, "covariances": own}


@pytest.mark.filterwarnings(
    "ignore::sklearn.exceptions.ConvergenceWarning"
)  # a fixed number of steps is asked for
@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_every_step_is_that_of_scikit_learn(covariance):
    steps, own = 12, start(covariance)
    inverse = np.linalg.inv if covariance in ("full", "tied") else np.reciprocal
    stock = GaussianMixture(
        3,
        covariance_type=covariance,
        tol=0,
        reg_covar=0,
        max_iter=steps,
        weights_init=own["weights"],
        means_init=own["means"],
        precisions_init=inverse(own["covariances"]),
    ).fit(FAITHFUL)
    if covariance in ("full", "tied"):
        name, init = "cov", own["covariances"]
    else:
        name, init = "scale", np.sqrt(own["covariances"]).reshape(3, -1)
    given = {"z": {"probs": own["weights"]}, "x": {"loc": own["means"], name: init}}
    word = {"full": "full", "tied": "tied", "diag": "diagonal", "spherical": "spherical"}[covariance]
    result = fit(gaussian_mixture(3, word), {"x": FAITHFUL}, EM(init=given, tol=0, max_steps=steps))
    order = np.argsort(-stock.weights_)
    found = result.parameters
    np.testing.assert_allclose(found["z"]["probs"], stock.weights_[order], rtol=1e-9)
    np.testing.assert_allclose(found["x"]["loc"], stock.means_[order], rtol=1e-9)
    covariances = stock.covariances_ if covariance == "tied" else stock.covariances_[order]
    ours = found["x"]["cov"] if name == "cov" else found["x"]["scale"].reshape(covariances.shape) ** 2
    np.testing.assert_allclose(ours, covariances, rtol=1e-9)
    assert result.log_likelihood == pytest.approx(stock.score(FAITHFUL) * len(FAITHFUL), rel=1e-12)
    np.testing.assert_allclose(
        result.score_samples({"x": FAITHFUL}), stock.score_samples(FAITHFUL), rtol=1e-9
    )
    np.testing.assert_allclose(
        result.predict_proba({"x": FAITHFUL}), stock.predict_proba(FAITHFUL)[:, order], atol=1e-10
    )


def test_labels_in_the_data_give_each_species_its_own_moments():
    iris = load_iris()
    spec = Spec(model={"z": Categorical(3), "x": MultivariateNormal(loc=By("z"), cov=By("z"))})
    result = fit(spec, {"z": iris.target, "x": iris.data})
    for k in range(3):
        own = iris.data[iris.target == k]
        np.testing.assert_allclose(result.parameters["x"]["loc"][k], own.mean(0), rtol=1e-12)
        np.testing.assert_allclose(result.parameters["x"]["cov"][k], np.cov(own.T, bias=True), rtol=1e-9)


def test_a_normal_per_group_is_the_moments_of_each_group():
    iris = load_iris()
    frame = pd.DataFrame({"kind": iris.target_names[iris.target], "width": iris.data[:, 1]})
    spec = Spec(model={"kind": Categorical(3), "width": Normal(1, loc=By("kind"), scale=By("kind"))})
    result = fit(spec, frame)
    groups = frame.groupby("kind")["width"]
    np.testing.assert_allclose(result.parameters["width"]["loc"][:, 0], groups.mean(), rtol=1e-12)
    np.testing.assert_allclose(result.parameters["width"]["scale"][:, 0], groups.std(ddof=0), rtol=1e-9)
