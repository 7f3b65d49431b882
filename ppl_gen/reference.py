"""The mathematics in NumPy, float64, one short function per formula: what fitted models are held against.

F1–F11 are the formulas of latent-variable models, EM and the variational autoencoder, E1–E3 exact anchors
beyond them. Nothing of this package is imported here, so agreement with it means something. Letters here:
D rows, K classes, C Monte-Carlo draws, n observed and k latent dimensions. Arrays broadcast over leading
axes. Values outside a family's support are the caller's to refuse: nothing is checked.

The identity F2, for any q at all:

>>> log_joint = np.log([[0.5 * 0.9, 0.5 * 0.2], [0.5 * 0.1, 0.5 * 0.8]])      # log p(x, z), (D, K)
>>> q = np.array([[0.3, 0.7], [1.0, 0.0]])
>>> gap = kl(q, responsibilities(log_joint))
>>> bool(np.allclose(lower_bound(log_joint, q) + gap, log_marginal(log_joint), rtol=1e-14))
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, entr, gammaln, logsumexp, poch, rel_entr, xlogy

Array = npt.NDArray[np.floating[Any]]
Layers = Sequence[tuple[Array, Array]]
LOG_2PI = float(np.log(2 * np.pi))


# Densities p(x|z), p(z)


def log_normal(x: Array, loc: Array | float, scale: Array | float) -> Array:
    """Log N(x; loc, scale²), element by element; all arguments broadcast."""
    out: Array = -0.5 * LOG_2PI - np.log(scale) - 0.5 * ((x - loc) / scale) ** 2
    return out


def log_multivariate_normal(x: Array, loc: Array, cov: Array) -> Array:
    """Log N(x; loc, cov), x and loc (…, n), cov (…, n, n), as (…); `x[:, None]` and K classes give (D, K)."""
    chol = np.linalg.cholesky(cov)
    white = np.linalg.solve(chol, (x - loc)[..., None])[..., 0]
    half_log_det = np.log(np.diagonal(chol, axis1=-2, axis2=-1)).sum(-1)
    out: Array = -0.5 * (x.shape[-1] * LOG_2PI + (white**2).sum(-1)) - half_log_det
    return out


def log_bernoulli(x: Array, logits: Array | float) -> Array:
    """Bernoulli of logits l: x·l − log(1 + eˡ), element by element (F9.6); finite for every finite l."""
    out: Array = x * logits - np.logaddexp(0.0, logits)
    return out


def log_categorical(x: npt.NDArray[np.int64], probs: Array) -> Array:
    """Log probs[…, x] for x (…) in 0..K−1 and probs (…, K); −inf where the probability is 0."""
    shape = np.broadcast_shapes(np.shape(x), probs.shape[:-1])
    table = np.broadcast_to(probs, (*shape, probs.shape[-1]))
    with np.errstate(divide="ignore"):
        out: Array = np.log(np.take_along_axis(table, np.broadcast_to(x, shape)[..., None], -1)[..., 0])
    return out


def log_poisson(x: Array, rate: Array | float) -> Array:
    """Poisson: x log rate − rate − log x!, element by element, with 0·log 0 := 0."""
    out: Array = xlogy(x, rate) - rate - gammaln(np.add(x, 1))
    return out


def log_student_t(x: Array, df: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Student's t, element by element (Lange, Little and Taylor 1989): all arguments broadcast."""
    squared = ((x - loc) / scale) ** 2
    # log Γ(a + ½) − log Γ(a) as one function of SciPy's: the two logarithms cancel where df is large.
    constant = np.log(poch(np.divide(df, 2), 0.5)) - 0.5 * np.log(np.pi * np.asarray(df))
    out: Array = constant - np.log(scale) - np.add(df, 1) / 2 * np.log1p(squared / df)
    return out


def log_multivariate_student_t(x: Array, df: Array, loc: Array, factor: Array) -> Array:
    """Student's t of x (…, n) with scale matrix L Lᵀ, L (…, n, n) and df (…), as (…) (Kotz and Nadarajah 2004)."""
    n = x.shape[-1]
    white = np.linalg.solve(factor, (x - loc)[..., None])[..., 0]
    log_volume = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
    ratio = poch(df / 2, n / 2)  # Γ((df + n)/2)/Γ(df/2), which in many dimensions is beyond floating point
    log_ratio = np.where(np.isfinite(ratio), np.log(ratio), gammaln(n / 2) - betaln(df / 2, n / 2))
    constant = log_ratio - 0.5 * n * np.log(np.pi * df)
    out: Array = constant - log_volume - (df + n) / 2 * np.log1p((white**2).sum(-1) / df)
    return out


def log_gamma(x: Array, concentration: Array | float, rate: Array | float) -> Array:
    """Gamma of shape a and rate b: a log b − log Γ(a) + (a − 1) log x − b x, element by element."""
    a, b = np.asarray(concentration), np.asarray(rate)
    out: Array = a * np.log(b) - gammaln(a) + (a - 1) * np.log(x) - b * x
    return out


def log_exponential(x: Array, rate: Array | float) -> Array:
    """Exponential: log rate − rate x, element by element."""
    out: Array = np.log(rate) - rate * x
    return out


def log_log_normal(x: Array, loc: Array | float, scale: Array | float) -> Array:
    """Log-normal: the normal density of log x, less log x, element by element."""
    out: Array = log_normal(np.log(x), loc, scale) - np.log(x)
    return out


def log_binomial(x: Array, total_count: Array | float, logits: Array | float) -> Array:
    """Binomial of n trials and logits l: log C(n, x) + x l − n log(1 + eˡ), element by element."""
    n = np.asarray(total_count)
    choices = gammaln(n + 1) - gammaln(np.add(x, 1)) - gammaln(n - x + 1)
    out: Array = choices + x * logits - n * np.logaddexp(0.0, logits)
    return out


def log_negative_binomial(x: Array, total_count: Array | float, logits: Array | float) -> Array:
    """Negative binomial, r = total_count: log C + x log σ(l) + r log σ(−l), element by element.

    C = Γ(r + x)/(Γ(r) x!) = 1/(x·B(r, x)) for x > 0 (Johnson, Kotz and Kemp 1992).
    """
    r = np.asarray(total_count)
    counted = np.maximum(x, 1)
    coefficient = np.where(np.asarray(x) > 0, -np.log(counted) - betaln(r, counted), 0.0)
    out: Array = coefficient - x * np.logaddexp(0.0, np.negative(logits)) - r * np.logaddexp(0.0, logits)
    return out


# F1–F7: discrete latents, EM, mixtures


def log_marginal(log_joint: Array) -> Array:
    """F1: log p(x) = log Σ_z p(x,z) from log_joint (…, K), as (…); the last axis lists the values of z."""
    out: Array = logsumexp(log_joint, axis=-1)
    return out


def standard_normal_grid(points: int, k: int) -> tuple[Array, Array]:
    """F1 for z ~ N(0, I_k): Gauss–Hermite nodes z (points**k, k) and log weights (points**k,).

    log_marginal(log p(x|z_j) + log weight_j) is log ∫ p(z) p(x|z) dz. Double the points to see its
    error, up to 300; a smooth p(x|z) is integrated to rounding.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(points)
    z = np.stack(np.meshgrid(*[node] * k, indexing="ij"), -1).reshape(-1, k)
    log_weight = np.log(weight) - 0.5 * LOG_2PI
    return z, np.stack(np.meshgrid(*[log_weight] * k, indexing="ij"), -1).reshape(-1, k).sum(-1)


def log_likelihood(log_joint: Array) -> float:
    """F4: Σ_d log p(x_d) from log_joint (D, K)."""
    return float(log_marginal(log_joint).sum())


def _expectation(q: Array, value: Array) -> Array:
    """E_q[value] over the last axis, with 0·(±inf) := 0."""
    out: Array = (q * np.where(q > 0, value, 0.0)).sum(-1)
    return out


def lower_bound(log_joint: Array, q: Array) -> Array:
    """F2: LB_d = E_q[log p(x,z) − log q(z)] from (D, K) tables, as (D,); 0·log 0 := 0."""
    out: Array = _expectation(q, log_joint) - xlogy(q, q).sum(-1)
    return out


def kl(q: Array, p: Array) -> Array:
    """F2: KL(q ‖ p) over the last axis of probabilities (…, K), as (…); inf where q puts mass and p none."""
    out: Array = rel_entr(q, p).sum(-1)
    return out


def entropy(q: Array) -> Array:
    """F3.1: H(q) = −Σ q log q over the last axis, as (…)."""
    out: Array = entr(q).sum(-1)
    return out


def lower_bound_via_entropy(log_joint: Array, q: Array) -> Array:
    """F3.1: LB = E_q[log p(x,z)] + H(q), (D, K) to (D,)."""
    return _expectation(q, log_joint) + entropy(q)


def lower_bound_via_kl(log_density: Array, prior: Array, q: Array) -> Array:
    """F3.2: LB = E_q[log p(x|z)] − KL(q ‖ p(z)), (D,); log_density and q (D, K), prior (K,) or (D, K)."""
    return _expectation(q, log_density) - kl(q, prior)


def responsibilities(log_joint: Array) -> Array:
    """F7.1 (the posterior of F2, step 1 of F5): r_dk = p(x_d,k) / Σ_k' p(x_d,k'), (D, K) to (D, K)."""
    out: Array = np.exp(log_joint - log_marginal(log_joint)[..., None])
    return out


def em_form_1_objective(log_joint: Array, q: Array) -> float:
    """F5, step 2: Σ_d LB_d(q_d, θ), with log_joint (D, K) at θ and q (D, K)."""
    return float(lower_bound(log_joint, q).sum())


def q_function(log_joint_old: Array, log_joint: Array) -> float:
    """F6: Q(θ̃, θ) = Σ_d E_{p(z|x_d;θ̃)}[log p(x_d,z;θ)]; tables (D, K) at θ̃ and at θ."""
    return float(_expectation(responsibilities(log_joint_old), log_joint).sum())


def mixture_log_joint(weights: Array, log_density: Array) -> Array:
    """F7: log π_k + log p_k(x_d), weights (K,) and log_density (D, K), as (D, K); −inf for an empty class."""
    with np.errstate(divide="ignore"):
        out: Array = np.log(weights) + log_density
    return out


def lower_bound_mixture(weights: Array, log_density: Array, r: Array) -> Array:
    """F7.2: LB_d = Σ_k r_dk log(π_k p_k(x_d) / r_dk), weights (K,), log_density and r (D, K), as (D,)."""
    log_r = np.log(np.where(r > 0, r, 1.0))
    return _expectation(r, mixture_log_joint(weights, log_density) - log_r)


def m_step_weights(r: Array) -> Array:
    """F7.3: π_k = (1/D) Σ_d r_dk, (D, K) to (K,)."""
    out: Array = r.mean(0)
    return out


def m_step_mean(x: Array, r: Array) -> Array:
    """F7.3: Σ_d r_dk x_d / Σ_d r_dk, the weighted mean; x (D, n) and r (D, K) to (K, n)."""
    out: Array = r.T @ x / r.sum(0)[:, None]
    return out


def m_step_variance(x: Array, r: Array) -> Array:
    """F7.3, normal with diagonal variances: x (D, n) and r (D, K) to (K, n)."""
    squares = (x[:, None] - m_step_mean(x, r)) ** 2  # (D, K, n)
    out: Array = np.einsum("dk,dki->ki", r, squares) / r.sum(0)[:, None]
    return out


def m_step_covariance(x: Array, r: Array) -> Array:
    """F7.3, normal with full covariances: x (D, n) and r (D, K) to (K, n, n)."""
    centred = x[:, None] - m_step_mean(x, r)  # (D, K, n)
    out: Array = np.einsum("dk,dki,dkj->kij", r, centred, centred) / r.sum(0)[:, None, None]
    return out


def m_step_tied_covariance(x: Array, r: Array) -> Array:
    """F7.3, one covariance shared by the classes: (n, n); its diagonal is the tied diagonal answer."""
    out: Array = np.einsum("k,kij->ij", r.sum(0), m_step_covariance(x, r)) / r.sum()
    return out


def m_step_bernoulli(x: Array, r: Array) -> Array:
    """F7.3, Bernoulli: x (D, n) of 0 and 1 and r (D, K) to probabilities (K, n)."""
    return m_step_mean(x, r)


def m_step_poisson(x: Array, r: Array) -> Array:
    """F7.3, Poisson: counts x (D, n) and r (D, K) to rates (K, n)."""
    return m_step_mean(x, r)


def m_step_categorical(x: npt.NDArray[np.int64], r: Array, levels: int) -> Array:
    """F7.3, categorical: x (D,) in 0..levels−1 and r (D, K) to probabilities (K, levels)."""
    return m_step_mean(np.eye(levels)[x], r)


# F8–F9: the Gaussian variational autoencoder. Draws are on the first axis: mu_D, eps (C, D, ·)


def reparameterise(mu_E: Array, eps: Array, sigma_E: Array | float = 1.0) -> Array:
    """F9.2, F9.5: z_c = μ_E + σ_E ⊙ ε_c; mu_E, sigma_E (D, k) and eps (C, D, k), as (C, D, k)."""
    out: Array = mu_E + sigma_E * eps
    return out


def kl_unit(mu_E: Array) -> Array:
    """F9.3: KL(N(μ_E, I) ‖ N(0, I)) = ½ μ_Eᵀμ_E, (D, k) to (D,); LB2 is its negative."""
    out: Array = 0.5 * (mu_E**2).sum(-1)
    return out


def lower_bound_unit(x: Array, mu_E: Array, mu_D: Array) -> Array:
    """F9.1 with F9.4: −(n/2) log 2π + LB1 + LB2; x (D, n), mu_E (D, k), mu_D (C, D, n), as (D,)."""
    lb1 = -0.5 * ((x - mu_D) ** 2).sum(-1).mean(0)
    out: Array = -0.5 * x.shape[-1] * LOG_2PI + lb1 - kl_unit(mu_E)
    return out


def reconstruction_diagonal(x: Array, mu_D: Array, sigma_D: Array | float) -> Array:
    """F9.5: −½ Σ_i [log 2π + log σ² + (x_i−μ_i)²/σ²], averaged over the draws.

    x is (D, n), mu_D (C, D, n); sigma_D broadcasts: a number, (n,), (D, n) or (C, D, n). Returns (D,).
    """
    cells = LOG_2PI + 2 * np.log(sigma_D) + ((x - mu_D) / sigma_D) ** 2
    out: Array = -0.5 * cells.sum(-1).mean(0)
    return out


def kl_diagonal(mu_E: Array, sigma_E: Array) -> Array:
    """F9.5: KL(N(μ_E, diag σ_E²) ‖ N(0, I)) = −½ Σ_j [1 + log σ_j² − μ_j² − σ_j²], (D, k) to (D,)."""
    out: Array = -0.5 * (1 + 2 * np.log(sigma_E) - mu_E**2 - sigma_E**2).sum(-1)
    return out


def lower_bound_diagonal(x: Array, mu_E: Array, sigma_E: Array, mu_D: Array, sigma_D: Array | float) -> Array:
    """F9.5: reconstruction − KL, (D,); x (D, n), mu_E, sigma_E (D, k), mu_D (C, D, n), sigma_D as above."""
    return reconstruction_diagonal(x, mu_D, sigma_D) - kl_diagonal(mu_E, sigma_E)


def reconstruction_bernoulli(x: Array, logits: Array) -> Array:
    """F9.6: Σ_i [x_i l_i − log(1+e^{l_i})] averaged over the draws; x (D, n), logits (C, D, n), as (D,)."""
    out: Array = log_bernoulli(x, logits).sum(-1).mean(0)
    return out


def sampled_lower_bound(log_density: Array, log_prior: Array, log_q: Array) -> Array:
    """F9.7, any families: the mean over draws of log p(x|z) + log p(z) − log q(z|x); three (C, …), as (…)."""
    out: Array = (log_density + log_prior - log_q).mean(0)
    return out


def sampled_difference_diagonal(mu_E: Array, sigma_E: Array | float, eps: Array) -> Array:
    """F11, last line: sampled bound minus closed form on the same draws, (D,); mu_E (D, k), eps (C, D, k).

    −Σ_j [μ_j σ_j ε_j + ½ (σ_j² − 1)(ε_j² − 1)], averaged over the draws; its expectation is 0.
    """
    cells = mu_E * sigma_E * eps + 0.5 * (np.square(sigma_E) - 1) * (eps**2 - 1)
    out: Array = -cells.sum(-1).mean(0)
    return out


def sampled_lower_bound_unit(x: Array, mu_E: Array, mu_D: Array, eps: Array) -> Array:
    """F9.7: F9.1 − μ_Eᵀε averaged over the draws, (D,); shapes of F9.1 and eps (C, D, k)."""
    out: Array = lower_bound_unit(x, mu_E, mu_D) - (mu_E * eps).sum(-1).mean(0)
    return out


# F10–F11: gradients, written out


def sgd_step(
    parameters: Mapping[str, Array], row_gradients: Mapping[str, Array], step_size: float
) -> dict[str, Array]:
    """F10: θ + α (1/|S|) Σ_{d∈S} ∇LB_d for every named parameter; gradients are (|S|, …), a row each."""
    return {name: value + step_size * row_gradients[name].mean(0) for name, value in parameters.items()}


ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda a: np.where(a > 0, a, 0.0), lambda a: np.where(a > 0, 1.0, 0.0)),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
}


def network(layers: Layers, inputs: Array, activation: str = "relu") -> Array:
    """F9: F_μ or G_μ, inputs (…, in) to (…, out); a layer is a pair (weight (out, in), bias (out,)).

    One layer is affine, two have one hidden layer; "relu" or "tanh" stands between layers only.
    """
    for i, (weight, bias) in enumerate(layers):
        inputs = (ACTIVATIONS[activation][0](inputs) if i else inputs) @ weight.T + bias
    return inputs


def network_pullback(
    layers: Layers, inputs: Array, cotangent: Array, activation: str = "relu"
) -> tuple[list[tuple[Array, Array]], Array]:
    """F11: vᵀ ∂F/∂θ and vᵀ ∂F/∂(input) by the chain rule, for v = cotangent (…, out) and inputs (…, in).

    Returns the gradients of each layer, weight (…, out, in) and bias (…, out), and of the input, (…, in).
    """
    pre = [network(layers[:i], inputs, activation) for i in range(len(layers))]
    gradients: list[tuple[Array, Array]] = []
    for i in range(len(layers) - 1, -1, -1):
        entering = ACTIVATIONS[activation][0](pre[i]) if i else inputs
        gradients.insert(0, (cotangent[..., :, None] * entering[..., None, :], cotangent))
        cotangent = cotangent @ layers[i][0] * (ACTIVATIONS[activation][1](pre[i]) if i else 1.0)
    return gradients, cotangent


def _named(prefix: str, gradients: list[tuple[Array, Array]]) -> dict[str, Array]:
    return {
        f"{prefix}.{i}.{part}": g
        for i, pair in enumerate(gradients)
        for part, g in zip(("weight", "bias"), pair, strict=True)
    }


def gradients_unit(
    x: Array, encoder: Layers, decoder: Layers, eps: Array, *, activation: str = "relu", sampled: bool = False
) -> dict[str, Array]:
    """F11.1 and F11.2 (sampled: F11.3): ∇LB_d of the unit-variance autoencoder; x (D, n), eps (C, D, k).

    Returns {"decoder.0.weight": (D, out, in), "decoder.0.bias": (D, out), …, "encoder.0.weight": …}: one
    gradient a row, which `sgd_step` averages.
    """
    mu_E = network(encoder, x, activation)
    z = reparameterise(mu_E, eps)
    residual = x - network(decoder, z, activation)  # F11.1: ∂LB1_c/∂μ_Dc, (C, D, n)
    theta, v = network_pullback(decoder, z, residual, activation)
    pull = v.mean(0) - (z.mean(0) if sampled else mu_E)  # (D, k)
    phi, _ = network_pullback(encoder, x, pull, activation)
    return _named("decoder", [(w.mean(0), b.mean(0)) for w, b in theta]) | _named("encoder", phi)


def gradients_diagonal(
    x: Array,
    encoder: tuple[Layers, Layers],
    decoder: Layers,
    log_sigma_D: Array,
    eps: Array,
    *,
    activation: str = "relu",
    sampled: bool = False,
) -> dict[str, Array]:
    """F11 for F9.5: encoder networks of μ_E and log σ_E, decoder network of μ_D, log σ_D (n,) for all rows.

    x is (D, n), eps (C, D, k). Returns one gradient a row under decoder.*, log_sigma_D, encoder_loc.* and
    encoder_log_scale.*.
    """
    mu_E = network(encoder[0], x, activation)
    sigma_E = np.exp(network(encoder[1], x, activation))
    z = reparameterise(mu_E, eps, sigma_E)
    scaled = (x - network(decoder, z, activation)) * np.exp(-log_sigma_D)  # (C, D, n)
    theta, v = network_pullback(decoder, z, scaled * np.exp(-log_sigma_D), activation)
    pull_loc = v.mean(0) - mu_E  # (D, k)
    pull_log_scale = (v * sigma_E * eps).mean(0) + 1 - sigma_E**2
    if sampled:
        pull_loc = pull_loc - (sigma_E * eps).mean(0)
        pull_log_scale = pull_log_scale - (mu_E * sigma_E * eps + sigma_E**2 * (eps**2 - 1)).mean(0)
    named = _named("decoder", [(w.mean(0), b.mean(0)) for w, b in theta])
    named["log_sigma_D"] = (scaled**2 - 1).mean(0)
    named |= _named("encoder_loc", network_pullback(encoder[0], x, pull_loc, activation)[0])
    return named | _named("encoder_log_scale", network_pullback(encoder[1], x, pull_log_scale, activation)[0])


# E1, E3: exact anchors


def ppca_marginal(W: Array, b: Array, sigma2: float) -> tuple[Array, Array]:
    """E1: p(x) = N(b, WWᵀ + σ²I) for W (n, k) and b (n,), as mean (n,) and covariance (n, n)."""
    return b, W @ W.T + sigma2 * np.eye(len(b))


def ppca_posterior(x: Array, W: Array, b: Array, sigma2: float) -> tuple[Array, Array]:
    """E1: p(z|x) = N(M⁻¹Wᵀ(x−b), σ²M⁻¹), M = WᵀW + σ²I, as means (D, k) and one covariance (k, k)."""
    M = W.T @ W + sigma2 * np.eye(W.shape[1])
    return np.linalg.solve(M, W.T @ (x - b).T).T, sigma2 * np.linalg.inv(M)


def factor_analysis_marginal(W: Array, b: Array, psi: Array) -> tuple[Array, Array]:
    """E1: p(x) = N(b, WWᵀ + diag ψ) for noise variances ψ (n,), as mean (n,) and covariance (n, n)."""
    return b, W @ W.T + np.diag(psi)


def factor_analysis_posterior(x: Array, W: Array, b: Array, psi: Array) -> tuple[Array, Array]:
    """E1: p(z|x) = N(M⁻¹WᵀΨ⁻¹(x−b), M⁻¹), M = I + WᵀΨ⁻¹W, as means (D, k) and one covariance (k, k)."""
    weighted = W.T / psi  # WᵀΨ⁻¹, (k, n)
    M = np.eye(W.shape[1]) + weighted @ W
    return np.linalg.solve(M, weighted @ (x - b).T).T, np.linalg.inv(M)


def log_marginal_affine(x: Array, W: Array, b: Array, psi: Array | float) -> Array:
    """E1: log p(x_d) of an affine decoder with noise variances ψ, (n,) or one number; x (D, n), as (D,)."""
    return log_multivariate_normal(x, *factor_analysis_marginal(W, b, np.broadcast_to(psi, b.shape)))


def kl_multivariate_normal(mean_q: Array, cov_q: Array, mean_p: Array, cov_p: Array) -> Array:
    """KL(N(mean_q, cov_q) ‖ N(mean_p, cov_p)) of F2, means (…, k) and covariances (…, k, k), as (…)."""
    shift = (mean_p - mean_q)[..., None]
    trace = np.trace(np.linalg.solve(cov_p, cov_q), axis1=-2, axis2=-1)
    distance = (shift * np.linalg.solve(cov_p, shift)).sum((-2, -1))
    log_dets = np.linalg.slogdet(cov_p)[1] - np.linalg.slogdet(cov_q)[1]
    out: Array = 0.5 * (trace + distance - mean_q.shape[-1] + log_dets)
    return out


def lower_bound_affine(x: Array, mean: Array, cov: Array, W: Array, b: Array, psi: Array | float) -> Array:
    """E1 with F3.2: the exact LB of an affine decoder for q = N(mean, cov), nothing sampled, as (D,).

    E_q[(x−Wz−b)_i²] is the squared residual at the mean plus (W cov Wᵀ)_ii. x is (D, n), mean (D, k), and
    cov (k, k) or (D, k, k).
    """
    spread = np.einsum("ij,...jl,il->...i", W, cov, W)  # (n,) or (D, n)
    squares = (x - mean @ W.T - b) ** 2 + spread
    expected = -0.5 * (LOG_2PI + np.log(psi) + squares / psi).sum(-1)
    k = W.shape[1]
    out: Array = expected - kl_multivariate_normal(mean, cov, np.zeros(k), np.eye(k))
    return out


def importance_weighted_bound(log_w: Array) -> Array:
    """E3: log (1/C) Σ_c w_c for log weights log p(x,z_c) − log q(z_c), (C, …) to (…)."""
    out: Array = logsumexp(log_w, axis=0) - np.log(len(log_w))
    return out


def importance_weighted_error(log_w: Array) -> Array:
    """E3: its standard error, sd(w) / (√C · mean w) by the delta method, (C, …) to (…); needs C ≥ 2."""
    w = np.exp(log_w - log_w.max(0))
    out: Array = w.std(0, ddof=1) / (np.sqrt(len(w)) * w.mean(0))
    return out
