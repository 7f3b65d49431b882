"""SVI on rows with missing cells, labels in some rows, and weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from ppl_gen import MLP, SVI, By, Categorical, Free, Linear, Normal, Poisson, Spec, compile_spec, fit, load
from ppl_gen.data.reading import read_table
from ppl_gen.errors import DataError
from ppl_gen.infer.ascent_step import gradient_step
from ppl_gen.infer.elbo import TraceableELBO
from ppl_gen.infer.optimisers import Layout
from ppl_gen.infer.svi import data_of
from ppl_gen.program.lowering import pyro_scope

RANDOM = np.random.default_rng(11)
N = 600
Z = RANDOM.normal(size=(N, 2))
W = RANDOM.normal(size=(2, 5))
X = Z @ W + 0.5 * RANDOM.normal(size=(N, 5)) + 3.0
HOLED = np.where(RANDOM.random(X.shape) < 0.25, np.nan, X)
HOLED[np.isnan(HOLED).all(1), 0] = 3.0
FACTORS = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(5, loc=Linear("z"), scale=Free(dim=1))})
LONG = SVI(epochs=200, batch_size=100, learning_rate=1e-2, schedule="cosine", kl="analytic", particles=4)


@pytest.fixture(scope="module")
def holed():
    return fit(FACTORS, {"x": HOLED}, LONG)


def exact(result, rows: np.ndarray) -> np.ndarray:
    """log p of the seen cells of each row: a normal with covariance W Wᵀ + σ² I, its rows and columns left out."""
    layers = {path: value.double().numpy() for path, value in result.program.state_dict().items()}
    weight, bias = layers["generative.layers.x:loc.weight"], layers["generative.layers.x:loc.bias"]
    variance = result.parameters["x"]["scale"].astype(float) ** 2
    cov = weight @ weight.T + np.eye(5) * variance
    found = []
    for row in rows:
        seen = ~np.isnan(row)
        found.append(multivariate_normal(bias[seen], cov[np.ix_(seen, seen)]).logpdf(row[seen]))
    return np.array(found)


def test_missing_cells_are_integrated_out_of_log_p(holed):
    values = holed.score_samples({"x": HOLED}, draws=2_000)
    truth = exact(holed, HOLED)
    # The bound lies below log p by half the weights' relative variance over the draws: a few hundredths here.
    assert np.sqrt(((values - truth) ** 2).mean()) < 0.1
    assert -0.03 < values.mean() - truth.mean() < 0.005


def test_a_fit_to_rows_with_holes_finds_the_model_that_made_them(holed):
    own = multivariate_normal(np.full(5, 3.0), W.T @ W + 0.25 * np.eye(5))
    fresh = RANDOM.normal(size=(2_000, 2)) @ W + 0.5 * RANDOM.normal(size=(2_000, 5)) + 3.0
    gap = own.logpdf(fresh) - exact(holed, fresh)
    # 16 learned numbers cost about 16/(2N·0.75) = 0.02 nats a row; three times that.
    assert gap.mean() < 0.06


def test_the_certificate_reads_masks_as_the_guide_does(holed):
    assert holed.certificate["objective"].ok
    assert holed.certificate["gap"].ok


def test_impute_is_about_as_near_as_the_true_conditional_mean(holed):
    filled = holed.impute({"x": HOLED})["x"]
    lost = np.isnan(HOLED)
    np.testing.assert_array_equal(filled[~lost], np.float32(HOLED[~lost]))
    best = HOLED.copy()  # the conditional mean under the law that made the rows
    cov = W.T @ W + 0.25 * np.eye(5)
    for row in best:
        seen = ~np.isnan(row)
        row[~seen] = 3.0 + cov[np.ix_(~seen, seen)] @ np.linalg.solve(
            cov[np.ix_(seen, seen)], row[seen] - 3.0
        )
    error, least = (np.sqrt(((own - X)[lost] ** 2).mean()) for own in (filled, best))
    assert error < 1.1 * least  # the guide's posterior is not quite the true one
    draws = holed.impute({"x": HOLED}, draws=40)["x"]
    assert draws.shape == (40, N, 5)
    spread = draws.std(0)[lost] / math.sqrt(40) + 0.1
    assert (np.abs(draws.mean(0)[lost] - filled[lost]) < 4 * spread).mean() > 0.99


def test_a_saved_fit_still_knows_that_cells_may_be_missing(holed, tmp_path):
    holed.save(tmp_path / "fit")
    again = load(tmp_path / "fit")
    np.testing.assert_array_equal(again.transform({"x": HOLED}), holed.transform({"x": HOLED}))


def test_a_guide_of_complete_rows_refuses_holes_and_says_why():
    spec = Spec(model={"z": Normal(2, loc=0, scale=1), "x": Normal(5, loc=MLP("z", [4]), scale=1)})
    result = fit(spec, {"x": X}, SVI(epochs=1))
    with pytest.raises(DataError, match="trained on complete rows"):
        result.transform({"x": HOLED})


def test_holes_in_counts_and_categories_reach_the_encoder_as_marks():
    counts = RANDOM.poisson(np.exp(0.5 * Z[:, :1] + 1.0), size=(N, 3)).astype(float)
    kinds = (Z[:, 1] > 0).astype(float) + (Z[:, 1] > 1)
    counts[RANDOM.random(counts.shape) < 0.2] = np.nan
    kinds[RANDOM.random(N) < 0.2] = np.nan
    counts[np.isnan(counts).all(1), 0] = 1.0
    spec = Spec(
        model={
            "z": Normal(2, loc=0, scale=1),
            "n": Poisson(3, rate=MLP("z", [8])),
            "c": Categorical(3, logits=MLP("z", [8])),
        }
    )
    result = fit(spec, {"n": counts, "c": kinds}, SVI(epochs=5))
    assert result.certificate["objective"].ok  # NumPy's reading of the encoder, masks and all
    entering = result.program.recognition.layers["z_trunk:"].weights[0].shape[-1]
    assert entering == 3 + 3 + 3 + 1  # counts and their marks, one-hot categories and their mark


Y = RANDOM.integers(3, size=N)
CLUSTERED = 2 * np.array([[-3.0, 0], [0, 3], [3, 0]])[Y] @ W + X
LABELS = np.where(RANDOM.random(N) < 0.2, Y, np.nan)
M2 = Spec(
    model={
        "y": Categorical(3),
        "z": Normal(2, loc=By("y"), scale=By("y")),
        "x": Normal(5, loc=Linear("z"), scale=Free()),
    },
    guide={
        "y": Categorical(3, logits=MLP("x", [8])),
        "z": Normal(2, loc=MLP(["x", "y"], [8]), scale=MLP(["x", "y"], [8])),
    },
)


def test_a_labelled_row_is_bounded_as_if_its_label_were_data():
    program = compile_spec(M2, {"x": CLUSTERED, "y": LABELS}, dtype=torch.float64)
    known = ~np.isnan(LABELS)
    rows = program.tensors(read_table({"x": CLUSTERED, "y": LABELS}, M2).arrays)
    alone = {"x": rows["x"][torch.from_numpy(known)], "y": torch.from_numpy(LABELS[known].astype(np.int64))}
    with pyro_scope(), torch.no_grad():
        torch.manual_seed(0)
        partly = TraceableELBO(1_000).per_row(program.model, program.guide, rows)[torch.from_numpy(known)]
        # Where y is given as data, neither half draws it: the guide's density of y is skipped.
        torch.manual_seed(1)
        wholly = TraceableELBO(1_000).per_row(program.model, program.guide, alone)
    # Two means of 4 000 draws whose spread is about that of log p, some 5 nats.
    assert float((partly - wholly).abs().mean()) < 5 * 2 * math.sqrt(2 / 1_000)


def test_few_labels_name_the_classes():
    result = fit(M2, {"x": CLUSTERED, "y": LABELS}, SVI(epochs=100, batch_size=50, learning_rate=1e-2))
    assert all(line.ok is not False for line in result.certificate.lines)
    unknown = np.isnan(LABELS)
    assert (result.predict({"x": CLUSTERED})[unknown] == Y[unknown]).mean() > 0.9


def test_weights_count_as_repeated_rows_do():
    spec = Spec(model={"c": Categorical(2), "x": Normal(2, loc=By("c"), scale=By("c"))})
    rows, weights = X[:80, :2], RANDOM.integers(1, 4, size=80).astype(float)
    program = compile_spec(spec, {"x": rows})  # its latent is summed out: nothing is drawn
    layout = Layout(dict(program.named_parameters()))
    flat, buffers = layout.flatten(dict(program.named_parameters())).detach(), dict(program.named_buffers())
    found = []
    for data, given in ((rows, weights), (np.repeat(rows, weights.astype(int), 0), None)):
        table = read_table({"x": data}, spec, weights=given)
        step = gradient_step(program, layout, SVI(), table.n_units)
        with pyro_scope():
            (gradient,), bound = step([flat], buffers, data_of(program, table), {})
        found.append((gradient.numpy(), float(bound) * table.total / table.n_units))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12, atol=1e-14)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-12)
