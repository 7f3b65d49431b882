"""A family of one's own, as a stranger adds it: one class, then the whole way from a declaration to a saved fit."""

# ruff: noqa: RUF012  the classes are written as their users would write them

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro.distributions
import pytest
import scipy.stats
import torch

from ppl_gen import (
    EM,
    MLP,
    SVI,
    By,
    Categorical,
    DataError,
    FitError,
    Free,
    Normal,
    Spec,
    SpecError,
    family,
    fit,
    load,
    read_spec,
    write_spec,
)
from ppl_gen.declare.notation import parse_entry


@family
class Rayleigh:
    """The length of a vector of two independent normals."""

    parameters = {"scale": "positive"}
    support = "positive"

    def distribution(self, scale):
        return torch.distributions.Weibull(scale * 2**0.5, torch.full_like(scale, 2.0))

    def log_density(self, x, scale):
        return np.log(x) - 2 * np.log(scale) - x**2 / (2 * scale**2)


@family
class RayleighInClosedForm:
    """The same, with its M-step."""

    parameters = {"scale": "positive"}
    support = "positive"

    def distribution(self, scale):
        return torch.distributions.Weibull(scale * 2**0.5, torch.full_like(scale, 2.0))

    def log_density(self, x, scale):
        return scipy.stats.rayleigh.logpdf(x, scale=scale)

    def statistics(self, x):
        return (x**2,)

    def maximise(self, n, squares):
        return {"scale": (squares / (2 * n)).sqrt()}


@family
class Logistic:
    """A real-valued family with a location and a scale, and no log_density."""

    parameters = {"loc": "real", "scale": "positive"}
    support = "real"

    def distribution(self, loc, scale):
        return pyro.distributions.Logistic(loc, scale)


@family
class Geometric:
    """Failures before the first success."""

    parameters = {"probs": "unit_interval"}
    support = "count"

    def distribution(self, probs):
        return torch.distributions.NegativeBinomial(torch.ones_like(probs), probs=1 - probs)

    def log_density(self, x, probs):
        return scipy.stats.nbinom.logpmf(x, 1, probs)

    def statistics(self, x):
        return (x,)

    def maximise(self, n, total):
        return {"probs": n / (n + total)}


RANDOM = np.random.default_rng(4)
GROUP = np.repeat([0, 1], 100)[:, None]
LENGTHS = RANDOM.rayleigh(1 + 4 * GROUP, (200, 2))


def mixture(node):
    return Spec(model={"z": Categorical(2), "x": node})


def test_it_is_a_word_of_the_language_in_text_and_in_files(tmp_path):
    node = parse_entry("Rayleigh(2, scale=By(z))")
    assert node == Rayleigh(2, scale=By("z"))
    assert pickle.loads(pickle.dumps(node)) == node
    path = tmp_path / "mine.yaml"
    write_spec(mixture(node), path)
    assert read_spec(path) == mixture(node)
    with pytest.raises(SpecError, match="Rayleigh has no option 'scal'; did you mean 'scale'"):
        parse_entry("Rayleigh(scal=1)")
    with pytest.raises(SpecError, match="Rayleigh's scale must be positive"):
        Rayleigh(scale=-1)


def test_em_finds_the_same_maximum_with_and_without_the_familys_own_m_step():
    steps = EM(restarts=2, tol=1e-10)
    generic = fit(mixture(Rayleigh(scale=By("z"))), {"x": LENGTHS}, steps)
    closed = fit(mixture(RayleighInClosedForm(scale=By("z"))), {"x": LENGTHS}, steps)
    assert generic.certificate.ok, generic.certificate
    assert closed.certificate.ok, closed.certificate
    assert generic.log_likelihood == pytest.approx(closed.log_likelihood, abs=1e-6)
    np.testing.assert_allclose(generic.parameters["x"]["scale"], closed.parameters["x"]["scale"], rtol=1e-4)


def test_one_class_is_fitted_as_scipy_fits_it_whatever_the_units():
    x = 5_000 + 300 * RANDOM.logistic(size=(150, 1))
    found = fit(Spec(model={"x": Logistic()}), {"x": x}, EM(tol=1e-12))
    loc, scale = scipy.stats.logistic.fit(x[:, 0], loc=5000, scale=300)
    own = found.parameters["x"]
    assert (own["loc"][0], own["scale"][0]) == pytest.approx((loc, scale), rel=1e-4)


def test_a_probability_and_a_missing_cell_are_taken():
    x = RANDOM.geometric(0.3, (80, 2)) - 1.0
    x[::9, 0] = np.nan
    found = fit(Spec(model={"x": Geometric()}), {"x": x})
    expected = [1 / (1 + np.nanmean(column)) for column in x.T]
    np.testing.assert_allclose(found.parameters["x"]["probs"], expected, rtol=1e-6)
    assert found.certificate.ok, found.certificate


def test_a_shared_or_written_parameter_is_learned_without_the_familys_own_m_step():
    both = fit(mixture(RayleighInClosedForm(scale=By("z", dim=1))), {"x": LENGTHS}, EM(restarts=1))
    assert both.certificate.ok, both.certificate
    fixed = fit(Spec(model={"x": RayleighInClosedForm(scale=[3, Free()])}), {"x": LENGTHS})
    scale = fixed.parameters["x"]["scale"]
    assert scale[0] == pytest.approx(3, rel=1e-15)
    assert scale[1] == pytest.approx(np.sqrt((LENGTHS[:, 1] ** 2).mean() / 2), rel=1e-4)


def test_svi_fits_it_as_a_decoder_and_as_a_latent():
    decoder = Spec(
        model={"z": Normal(1, loc=0, scale=1), "x": Rayleigh(2, scale=MLP("z", [4]))},
    )
    found = fit(decoder, {"x": LENGTHS}, SVI(epochs=3, batch_size=50))
    assert next(line for line in found.certificate.lines if line.name == "objective").ok
    latent = Spec(
        model={"s": Rayleigh(1, scale=1), "x": Normal(2, loc="s", scale=1)},
    )
    found = fit(latent, {"x": LENGTHS}, SVI(epochs=3, batch_size=50))
    assert next(line for line in found.certificate.lines if line.name == "objective").ok
    assert (found.sample(20, seed=1)["s"] > 0).all()


def test_without_a_second_opinion_the_certificate_withholds_its_verdict():
    found = fit(mixture(Logistic(loc=By("z"), scale=Free())), {"x": LENGTHS}, EM(restarts=1))
    line = next(line for line in found.certificate.lines if line.name == "objective")
    assert line.ok is None
    assert "Logistic declares no log_density" in line.text


SCRIPT = """
import sys
from ppl_gen import load
try:
    load(sys.argv[1])
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_saved_fit_needs_the_class_and_says_so(tmp_path):
    found = fit(mixture(Rayleigh(scale=By("z"))), {"x": LENGTHS}, EM(restarts=1))
    found.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    assert again.log_likelihood == found.log_likelihood
    np.testing.assert_array_equal(again.predict({"x": LENGTHS}), found.predict({"x": LENGTHS}))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "fit")], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("FitError"), done.stdout + done.stderr
    assert "uses Rayleigh, a family that is not the library's: import the module" in done.stdout
    assert FitError.__name__ in done.stdout


def test_values_outside_its_support_are_refused():
    with pytest.raises(DataError, match="holds 0 in row 1"):
        fit(Spec(model={"x": Rayleigh()}), {"x": [[1.0], [0.0]]})


WRONG = [
    ({}, "lacks parameters"),
    ({"parameters": {"dim": "real"}}, "cannot be called dim"),
    ({"parameters": {"a": "integer"}}, "a is 'integer'; choose from real, positive, unit_interval"),
    (
        {"parameters": {"a": "real"}, "support": "complex"},
        "support is 'complex'; choose from real, positive, count",
    ),
    ({"parameters": {"a": "real"}, "support": "real"}, r"lacks distribution\(self, a\)"),
    (
        {"parameters": {"a": "real"}, "support": "real", "distribution": print, "statistics": print},
        "has one of statistics and maximise",
    ),
]


@pytest.mark.parametrize(("body", "message"), WRONG, ids=[message[:20] for _, message in WRONG])
def test_a_class_that_lacks_something_is_told_what(body, message):
    with pytest.raises(SpecError, match=message):
        family(type("Unfinished", (), body))
    with pytest.raises(SpecError, match="Poisson is a word of the language already"):
        family(type("Poisson", (), body))


def test_a_distribution_over_vectors_is_refused_by_its_shape():
    def over_vectors(self, loc):
        return pyro.distributions.Normal(loc, 1.0).to_event(1)

    body = {"parameters": {"loc": "real"}, "support": "real"}
    with pytest.raises(
        SpecError, match=r"batch shape \(20,\) and event shape \(1,\) where the parameters' shape"
    ):
        family(type("Vector", (), body | {"distribution": over_vectors}))
    with pytest.raises(SpecError, match="Vector's distribution fails at loc"):
        family(type("Vector", (), body | {"distribution": lambda self, mean: mean}))


def test_the_example_of_the_contributors_guide_runs_as_it_stands():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    block = next(part for part in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "@family" in part)
    done = subprocess.run(
        [sys.executable, "-c", block + "\nprint(result.certificate.ok, result.status.name)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "CONVERGED"], done.stdout + done.stderr
