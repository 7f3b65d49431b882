"""Densities against SciPy in every batch layout, draws by their moments, Kullback–Leibler against torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.distributions import MultivariateNormal as TorchMultivariateNormal
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from ppl_gen.program.families import in_standard_units
from ppl_gen.program.families.bernoulli import BernoulliVector
from ppl_gen.program.families.binomial import BinomialVector
from ppl_gen.program.families.categorical import CategoricalVector
from ppl_gen.program.families.exponential import ExponentialVector
from ppl_gen.program.families.gamma import GammaVector
from ppl_gen.program.families.log_normal import LogNormalVector
from ppl_gen.program.families.multivariate_normal import CholeskyNormal
from ppl_gen.program.families.multivariate_student_t import CholeskyStudentT
from ppl_gen.program.families.negative_binomial import NegativeBinomialVector
from ppl_gen.program.families.normal import DiagonalNormal
from ppl_gen.program.families.poisson import PoissonVector
from ppl_gen.program.families.student_t import StudentTVector

N, D, K = 7, 3, 4
# Where the parameters lie: one set; one a row; one a class; classes of two latents, one of which does not
# enter; one a class and row.
LAYOUTS = {
    "one": (),
    "rows": (N,),
    "classes": (K, 1),
    "two latents": (2, K, 1),
    "outer latent alone": (2, 1, 1),
    "classes and rows": (K, N),
}


def random() -> np.random.Generator:
    return np.random.default_rng(5)


def cholesky_factors(shape: tuple[int, ...], width: int) -> np.ndarray:
    A = random().normal(size=(*shape, width, 2 * width))
    return np.linalg.cholesky(A @ np.swapaxes(A, -1, -2) / width)


def diagonal_normal(shape: tuple[int, ...]):
    loc, scale = random().normal(size=(*shape, D)), random().uniform(0.3, 2, (*shape, D))
    value = random().normal(size=(N, D))
    dist = DiagonalNormal(torch.tensor(loc), torch.tensor(scale))
    return dist, value, scipy.stats.norm.logpdf(value, loc, scale).sum(-1)


def cholesky_normal(shape: tuple[int, ...], width: int = D):
    loc, factor = random().normal(size=(*shape, width)), cholesky_factors(shape, width)
    value = random().normal(size=(N, width))
    batch = np.broadcast_shapes(shape, (N,))
    expected = np.empty(batch)
    wide = np.broadcast_to(loc, (*batch, width)), np.broadcast_to(factor, (*batch, width, width))
    for place in itertools.product(*map(range, batch)):
        mean, L = wide[0][place], wide[1][place]
        expected[place] = scipy.stats.multivariate_normal.logpdf(value[place[-1]], mean, L @ L.T)
    return CholeskyNormal(torch.tensor(loc), torch.tensor(factor)), value, expected


def wide_cholesky_normal(shape: tuple[int, ...]):
    return cholesky_normal(shape, 17)


def bernoulli(shape: tuple[int, ...]):
    logits, value = random().normal(size=(*shape, D)), random().integers(0, 2, (N, D)).astype(float)
    expected = scipy.stats.bernoulli.logpmf(value, scipy.special.expit(logits)).sum(-1)
    return BernoulliVector(torch.tensor(logits)), value, expected


def poisson(shape: tuple[int, ...]):
    rate, value = random().uniform(0.1, 9, (*shape, D)), random().integers(0, 12, (N, D)).astype(float)
    return PoissonVector(torch.tensor(rate)), value, scipy.stats.poisson.logpmf(value, rate).sum(-1)


def items(shape: tuple[int, ...]):
    logits, value = random().normal(size=(*shape, D, 5)), random().integers(0, 5, (N, D))
    picked = np.broadcast_to(value[..., None], (*np.broadcast_shapes(shape, (N,)), D, 1))
    full = np.broadcast_to(scipy.special.log_softmax(logits, -1), (*picked.shape[:-1], 5))
    expected = np.take_along_axis(full, picked, -1)[..., 0].sum(-1)
    return CategoricalVector(torch.tensor(logits), scalar=False), value, expected


def scalar_category(shape: tuple[int, ...]):
    logits, value = random().normal(size=(*shape, 5)), random().integers(0, 5, N)
    batch = np.broadcast_shapes(shape, (N,))
    full = np.broadcast_to(scipy.special.log_softmax(logits, -1), (*batch, 5))
    expected = np.take_along_axis(full, np.broadcast_to(value[:, None], (*batch, 1)), -1)[..., 0]
    return CategoricalVector(torch.tensor(logits), scalar=True), value, expected


def student_t(shape: tuple[int, ...]):
    generator = random()
    df, loc = generator.uniform(0.5, 8, (*shape, D)), generator.normal(size=(*shape, D))
    scale, value = generator.uniform(0.3, 2, (*shape, D)), 3 * generator.normal(size=(N, D))
    dist = StudentTVector(*map(torch.tensor, (df, loc, scale)))
    return dist, value, scipy.stats.t.logpdf(value, df, loc, scale).sum(-1)


def multivariate_student_t(shape: tuple[int, ...]):
    df, loc, factor = (
        random().uniform(0.5, 8, shape),
        random().normal(size=(*shape, D)),
        cholesky_factors(shape, D),
    )
    value = 3 * random().normal(size=(N, D))
    batch = np.broadcast_shapes(shape, (N,))
    wide = [np.broadcast_to(p, (*batch, *p.shape[len(shape) :])) for p in (np.asarray(df), loc, factor)]
    expected = np.empty(batch)
    for place in itertools.product(*map(range, batch)):
        own, mean, L = (p[place] for p in wide)
        expected[place] = scipy.stats.multivariate_t.logpdf(value[place[-1]], mean, L @ L.T, df=own)
    parameters = (np.asarray(df)[..., None], loc, factor)
    return CholeskyStudentT(*(torch.tensor(p) for p in parameters)), value, expected


def gamma(shape: tuple[int, ...]):
    concentration, rate = random().uniform(0.2, 9, (2, *shape, D))
    value = random().uniform(0.01, 6, (N, D))
    dist = GammaVector(torch.tensor(concentration), torch.tensor(rate))
    return dist, value, scipy.stats.gamma.logpdf(value, concentration, scale=1 / rate).sum(-1)


def exponential(shape: tuple[int, ...]):
    rate, value = random().uniform(0.2, 9, (*shape, D)), random().uniform(0.01, 6, (N, D))
    dist = ExponentialVector(torch.tensor(rate))
    return dist, value, scipy.stats.expon.logpdf(value, scale=1 / rate).sum(-1)


def log_normal(shape: tuple[int, ...]):
    loc, scale = random().normal(size=(*shape, D)), random().uniform(0.3, 2, (*shape, D))
    value = random().uniform(0.01, 6, (N, D))
    dist = LogNormalVector(torch.tensor(loc), torch.tensor(scale))
    return dist, value, scipy.stats.lognorm.logpdf(value, scale, scale=np.exp(loc)).sum(-1)


def binomial(shape: tuple[int, ...]):
    total, p = random().integers(1, 20, D).astype(float), random().uniform(0.02, 0.98, (*shape, D))
    value = random().integers(0, total + 1, (N, D)).astype(float)
    dist = BinomialVector(torch.tensor(total), torch.tensor(scipy.special.logit(p)))
    return dist, value, scipy.stats.binom.logpmf(value, total, p).sum(-1)


def binomial_with_totals_by_row(shape: tuple[int, ...]):
    total, p = random().integers(1, 20, (N, D)).astype(float), random().uniform(0.02, 0.98, (*shape, D))
    value = random().integers(0, total + 1).astype(float)
    dist = BinomialVector(torch.tensor(total), torch.tensor(scipy.special.logit(p)))
    return dist, value, scipy.stats.binom.logpmf(value, total, p).sum(-1)


def negative_binomial(shape: tuple[int, ...]):
    total, p = random().uniform(0.1, 30, (*shape, D)), random().uniform(0.02, 0.98, (*shape, D))
    value = random().integers(0, 30, (N, D)).astype(float)
    dist = NegativeBinomialVector(torch.tensor(total), torch.tensor(scipy.special.logit(p)))
    return dist, value, scipy.stats.nbinom.logpmf(value, total, 1 - p).sum(-1)


CELLS = (  # families of independent cells, which may be missing one by one
    diagonal_normal,
    bernoulli,
    poisson,
    student_t,
    gamma,
    exponential,
    log_normal,
    binomial,
    binomial_with_totals_by_row,
    negative_binomial,
)
FAMILIES = (
    *CELLS,
    cholesky_normal,
    wide_cholesky_normal,
    multivariate_student_t,
    items,
    scalar_category,
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_a_density_is_that_of_scipy_wherever_its_parameters_lie(family, layout):
    dist, value, expected = family(LAYOUTS[layout])
    # Sums of D logarithms of order 10: 1e-12 is a few thousand units in the last place.
    plain = dist.log_prob(torch.tensor(value)).numpy()
    expanded = dist.expand(np.broadcast_shapes(dist.batch_shape, (N,))).log_prob(torch.tensor(value)).numpy()
    with in_standard_units():
        lean = dist.log_prob(torch.tensor(value)).numpy()
    for found in (plain, expanded, lean):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layout", ["one", "classes", "classes and rows"])
@pytest.mark.parametrize("family", CELLS, ids=lambda f: f.__name__)
def test_a_missing_cell_adds_nothing_to_the_density(family, layout):
    dist, value, expected = family(LAYOUTS[layout])
    columns = torch.eye(D, dtype=torch.float64)
    alone = []
    for column in columns:  # what is filled in must not matter, nor be in the support
        filled = torch.where(column > 0, torch.tensor(value), 0.0)
        alone.append(dist.where_seen(column.expand(N, D)).log_prob(filled).numpy())
    np.testing.assert_allclose(sum(alone), expected, rtol=1e-11, atol=1e-11)
    both = dist.where_seen((1 - columns[0]).expand(N, D)).log_prob(torch.tensor(value)).numpy()
    np.testing.assert_allclose(both, expected - alone[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [diagonal_normal, cholesky_normal, wide_cholesky_normal])
def test_a_density_far_from_zero_is_that_of_the_shifted_one(family):
    dist, value, expected = family((K, 1))
    offset = 2.0**27  # exact in float64, so that only the rounding of the data to 2^-25 is left
    rounded = (value + offset) - offset
    at_home = dist.log_prob(torch.tensor(rounded))
    loc = dist.loc.add(offset).sub(offset)
    for name, other in vars(dist).items():
        assert name.startswith("_") or torch.is_tensor(other)
    home = type(dist)(loc, dist.scale if hasattr(dist, "scale") else dist.scale_tril)
    away = type(dist)(loc + offset, dist.scale if hasattr(dist, "scale") else dist.scale_tril)
    np.testing.assert_allclose(at_home, expected, rtol=1e-5)
    found = away.log_prob(torch.tensor(rounded + offset))
    np.testing.assert_allclose(found, home.log_prob(torch.tensor(rounded)), rtol=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_draws_have_the_shape_of_batch_and_event(family):
    dist, value, _ = family((K, 1))
    expanded = dist.expand((K, N))
    assert expanded.sample().shape == (K, *np.shape(value))
    assert expanded.sample((2,)).shape == (2, K, *np.shape(value))


def within_five_standard_errors(draws: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor) -> None:
    error = (draws.double().mean(0) - mean).abs()
    assert bool((error < 5 * (variance / len(draws)).sqrt()).all())


def test_draws_have_the_moments_of_their_law():
    torch.manual_seed(0)
    S = 40_000
    loc = torch.tensor([[1.0, -2.0], [0.0, 3.0]], dtype=torch.float64)
    scale = torch.tensor([[0.5, 2.0], [1.0, 0.1]], dtype=torch.float64)
    within_five_standard_errors(DiagonalNormal(loc, scale).sample((S,)), loc, scale**2)
    L = torch.tensor(cholesky_factors((2,), 2))
    draws = CholeskyNormal(loc, L).sample((S,))
    cov = L @ L.mT
    within_five_standard_errors(draws, loc, cov.diagonal(dim1=-2, dim2=-1))
    crossed = (draws[..., 0] - loc[:, 0]) * (draws[..., 1] - loc[:, 1])
    spread = cov[:, 0, 0] * cov[:, 1, 1] + cov[:, 0, 1] ** 2
    within_five_standard_errors(crossed, cov[:, 0, 1], spread)
    rate = torch.tensor([0.2, 7.0], dtype=torch.float64)
    within_five_standard_errors(PoissonVector(rate).sample((S,)), rate, rate)
    for family in (student_t, gamma, exponential, log_normal, binomial, negative_binomial):
        dist, _, _ = family((N,))
        if family is student_t:  # lighter tails, so that the variance of squares is what the draws have
            dist = StudentTVector(dist.df + 12, dist.loc, dist.scale)
        if family is log_normal:
            dist = LogNormalVector(dist.loc, dist.scale / 5)
        draws = dist.sample((S,))
        within_five_standard_errors(draws, dist.mean, dist.variance)
        squares = (draws - dist.mean) ** 2
        within_five_standard_errors(squares, dist.variance, squares.var(0))
    df = torch.full((1,), 9.0, dtype=torch.float64)
    dist = CholeskyStudentT(df, loc, torch.tensor(cholesky_factors((2,), 2)))
    draws = dist.sample((S,))
    within_five_standard_errors(draws, dist.mean, dist.variance)
    within_five_standard_errors((draws - loc) ** 2, dist.variance, ((draws - loc) ** 2).var(0))
    p = torch.tensor([0.1, 0.7], dtype=torch.float64)
    within_five_standard_errors(BernoulliVector(p.logit()).sample((S,)), p, p * (1 - p))
    shares = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]], dtype=torch.float64)
    ones = torch.nn.functional.one_hot(CategoricalVector(shares.log(), scalar=False).sample((S,)), 3)
    within_five_standard_errors(ones, shares, shares * (1 - shares))


def test_means_and_variances_are_those_of_scipy():
    p = torch.tensor([0.3, 0.6], dtype=torch.float64)
    r = torch.tensor([0.5, 7.0], dtype=torch.float64)
    for dist, stock in (
        (StudentTVector(5 + r, p, r), scipy.stats.t(5 + r.numpy(), p.numpy(), r.numpy())),
        (GammaVector(r, p), scipy.stats.gamma(r.numpy(), scale=1 / p.numpy())),
        (ExponentialVector(r), scipy.stats.expon(scale=1 / r.numpy())),
        (LogNormalVector(p, r / 10), scipy.stats.lognorm(r.numpy() / 10, scale=np.exp(p.numpy()))),
        (BinomialVector(torch.full_like(p, 9), p.logit()), scipy.stats.binom(9, p.numpy())),
        (NegativeBinomialVector(r, p.logit()), scipy.stats.nbinom(r.numpy(), 1 - p.numpy())),
    ):
        np.testing.assert_allclose(dist.mean, stock.mean(), rtol=1e-12)
        np.testing.assert_allclose(dist.variance, stock.var(), rtol=1e-12)


def test_degrees_of_freedom_without_end_are_the_normal_and_totals_without_end_poissons():
    x = torch.linspace(-4, 4, 9, dtype=torch.float64).unsqueeze(-1)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    t = StudentTVector(one * 1e9, zero, one).log_prob(x)
    np.testing.assert_allclose(t, scipy.stats.norm.logpdf(x[:, 0]), rtol=1e-6)
    counts = torch.arange(12, dtype=torch.float64).unsqueeze(-1)
    nb = NegativeBinomialVector(one * 1e11, (one * 3 / 1e11).log()).log_prob(counts)
    np.testing.assert_allclose(nb, scipy.stats.poisson.logpmf(counts[:, 0], 3), rtol=1e-8)


def test_gradients_reach_the_parameters_of_a_reparameterised_draw():
    loc = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    L = torch.eye(2, dtype=torch.float64).requires_grad_()
    CholeskyNormal(loc, L).rsample().sum().backward()
    assert bool((loc.grad == 1).all())
    assert float(L.grad.abs().sum()) > 0


def test_divergences_are_those_of_torch():
    rows = (K, 1)
    p, _, _ = diagonal_normal(rows)
    q = DiagonalNormal(p.loc.flip(0) + 1, p.scale.flip(0))
    stock = kl_divergence(TorchNormal(p.loc, p.scale), TorchNormal(q.loc, q.scale)).sum(-1)
    np.testing.assert_allclose(kl_divergence(p, q), stock, rtol=1e-12)
    p, _, _ = cholesky_normal(rows)
    q = CholeskyNormal(p.loc.flip(0) + 1, p.scale_tril.flip(0))
    stock = kl_divergence(
        TorchMultivariateNormal(p.loc, scale_tril=p.scale_tril),
        TorchMultivariateNormal(q.loc, scale_tril=q.scale_tril),
    )
    np.testing.assert_allclose(kl_divergence(p, q), stock, rtol=1e-11)


def test_every_value_of_a_discrete_vector_is_enumerated_once():
    found = CategoricalVector(torch.zeros(2, 3), scalar=False).enumerate_support()
    assert sorted(map(tuple, found.tolist())) == sorted(itertools.product(range(3), repeat=2))
    found = BernoulliVector(torch.zeros(3, dtype=torch.float64)).enumerate_support()
    assert sorted(map(tuple, found.tolist())) == sorted(itertools.product((0.0, 1.0), repeat=3))
    scalar = CategoricalVector(torch.zeros(5, 4), scalar=True)
    assert scalar.enumerate_support(expand=False).shape == (4, 1)
    assert scalar.enumerate_support().shape == (4, 5)


def test_probabilities_of_all_values_sum_to_one():
    for dist in (
        CategoricalVector(torch.randn(3, 4, dtype=torch.float64), scalar=False),
        CategoricalVector(torch.randn(4, dtype=torch.float64), scalar=True),
        BernoulliVector(torch.randn(3, dtype=torch.float64)),
    ):
        assert float(dist.log_prob(dist.enumerate_support()).exp().sum()) == pytest.approx(1, rel=1e-14)


def test_a_value_outside_the_support_is_refused_where_validation_is_on():
    with pytest.raises(ValueError, match="support"):
        BernoulliVector(torch.zeros(2), validate_args=True).log_prob(torch.tensor([0.0, 7.0]))
    with pytest.raises(ValueError, match="support"):
        PoissonVector(torch.ones(1), validate_args=True).log_prob(torch.tensor([-1.0]))
    with pytest.raises(ValueError, match="support"):
        CategoricalVector(torch.zeros(3), True, validate_args=True).log_prob(torch.tensor(3))
