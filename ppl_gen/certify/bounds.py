"""What the formulas say: bounds, gaps and KL terms of a subject, from its NumPy reading and the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ppl_gen import reference
from ppl_gen.certify.evaluate import Evaluation, agreement, joint_states
from ppl_gen.certify.predictors import Array, Values
from ppl_gen.certify.subject import Subject
from ppl_gen.declare.nodes import Node
from ppl_gen.declare.terms import Free, Linear, Name, Sum, Term, Value


def exact_table(subject: Subject) -> Array:
    """Log p(x_d, z) at every joint state of the discrete latents: (N, K)."""
    return subject.log_joint


def site_marginals(subject: Subject, r: Array, site: Array) -> Array:
    """F7.1's joint responsibilities (N, K), summed over the latents that `site` (…enumerated, N) lacks."""
    depth = len(subject.program.enumerated)
    states = joint_states(subject.model, subject.program.enumerated)
    sizes = [len(states[name]) for name in reversed(subject.program.enumerated)]
    full = r.T.reshape(*sizes, -1)
    shape = (1,) * (depth + 1 - site.ndim) + site.shape
    absent = tuple(axis for axis in range(depth) if shape[axis] == 1)
    return np.asarray(full.sum(absent, keepdims=True))


def sampled_bound(subject: Subject, drawn: Values) -> Array:
    """F9.7 on one draw of the guide's continuous latents; discrete ones are summed (E2): (N,)."""
    values = {**subject.rows, **drawn}
    named = {name: log_guide(subject, name, drawn) for name in subject.guide.names}
    log_q = sum(named.values(), np.zeros(()))
    states = joint_states(subject.model, subject.program.enumerated, first=-1 - max(1, log_q.ndim))
    log_p = subject.model.log_joint(values | states) + agreement({**drawn, **states}, subject.rows)
    depth = max(1, log_q.ndim)
    states_first = log_p.reshape(-1, *log_p.shape[log_p.ndim - depth :])
    summed = reference.log_marginal(np.moveaxis(states_first, 0, -1))
    discrete = [n for n in subject.guide.names if subject.program.spec.nodes[n].discrete]
    if not discrete:
        return reference.sampled_lower_bound(summed[None], np.zeros(()), log_q[None]).reshape(-1)
    log_weight = sum((named[name] for name in discrete), np.zeros(()))
    bound, weight = np.broadcast_arrays(summed - log_q, np.exp(log_weight))
    return np.asarray((weight * bound).reshape(-1, bound.shape[-1]).sum(0))


def log_guide(subject: Subject, name: str, drawn: Values) -> Array:
    """Log q of one of the guide's latents at a draw: certain where a row has its label (rule 19), (…, N)."""
    log_q = subject.guide.log_density(name, {**subject.rows, **drawn})
    label = subject.rows.get(name)
    if label is None:
        return log_q
    known = np.asarray(np.nan_to_num(label, nan=-1) >= 0).reshape(len(label), -1).any(-1)
    return np.where(known, agreement({name: drawn[name]}, subject.rows), log_q)


def reconstruction(subject: Subject, drawn: Values) -> Array:
    """Log p(x_d | z) on one draw (F9.5, F9.6; with unit variances F9.2): (N,)."""
    values = {**subject.rows, **drawn}
    observed = [subject.model.log_density(name, values) for name in subject.program.schema.roles.observed]
    return np.asarray(sum(observed, np.zeros(())))


def kl_terms(subject: Subject, drawn: Values) -> dict[str, Array]:
    """KL(q(z | x_d) ‖ p(z)) of each latent of a mean-field guide in closed form (F9.3, F9.5): (N,) each."""
    values = {**subject.rows, **drawn}
    n = len(next(iter(subject.rows.values())))
    return {name: np.broadcast_to(_kl(subject, name, values), n) for name in subject.guide.names}


def _kl(subject: Subject, name: str, values: Values) -> Array:
    if subject.model.predictors.node(name).family == "Normal":
        return np.asarray(kl_by_dimension(subject, name, values).sum(-1))
    (mean_q, cov_q), (mean_p, cov_p) = (
        moments(half, name, values) for half in (subject.guide, subject.model)
    )
    return reference.kl_multivariate_normal(mean_q, cov_q, mean_p, cov_p)


def kl_by_dimension(subject: Subject, name: str, values: Values) -> Array:
    """The KL of a Normal latent, dimension by dimension: (…, N, k).

    Measured from the prior's location in units of its scale, it is the KL to N(0, 1) of F9.5.
    """
    q, p = subject.guide.parameters(name, values), subject.model.parameters(name, values)
    width = (subject.program.schema.dims[name],)
    loc = (q["loc"] - p["loc"]) / p["scale"]
    scale = q["scale"] / p["scale"]
    shape = np.broadcast_shapes(loc.shape, scale.shape, width)
    return reference.kl_diagonal(
        np.broadcast_to(loc, shape)[..., None], np.broadcast_to(scale, shape)[..., None]
    )


def moments(half: Evaluation, name: str, values: Values) -> tuple[Array, Array]:
    """Mean (…, k) and covariance (…, k, k) of a Normal or MultivariateNormal node."""
    given, k = half.parameters(name, values), half.schema.dims[name]
    loc = np.broadcast_to(given["loc"], (*given["loc"].shape[:-1], k))
    if "cov" in given:
        return loc, given["cov"]
    if "scale_tril" in given:
        return loc, given["scale_tril"] @ given["scale_tril"].swapaxes(-1, -2)
    return loc, np.broadcast_to(given["scale"], (*given["scale"].shape[:-1], k))[..., None] ** 2 * np.eye(k)


@dataclass(frozen=True)
class Affine:
    """A decoder N(Wz + b, diag ψ) on z ~ N(0, I), as E1 wants it: W (n, k), b (n,), psi (n,)."""

    W: Array
    b: Array
    psi: Array


def affine_decoder(subject: Subject) -> Affine | None:
    """The decoder of E1, or None where the model is another one."""
    spec, roles = subject.program.spec, subject.program.schema.roles
    if len(roles.latent) != 1 or subject.guide.names != roles.latent or not roles.observed:
        return None
    (z,) = roles.latent
    if subject.guide.predictors.node(z).guide_only:
        return None
    k = subject.program.schema.dims[z]
    if spec.nodes[z].family != "Normal" or not _standard(subject.model, spec.nodes[z], z):
        return None
    if not all(_affine_in(subject.model, spec.nodes[name], z) for name in roles.observed):
        return None
    at = {z: np.concatenate([np.zeros((1, k)), np.eye(k)])}  # the origin and the unit vectors give b and W
    locs, scales = [], []
    for name in roles.observed:
        width = subject.program.schema.dims[name]
        given = subject.model.parameters(name, at)
        locs.append(np.broadcast_to(given["loc"], (k + 1, width)))
        scales.append(np.broadcast_to(given["scale"], (width,)))
    loc = np.concatenate(locs, axis=-1)
    return Affine((loc[1:] - loc[0]).T, loc[0], np.concatenate(scales) ** 2)


def _standard(model: Evaluation, node: Node, name: str) -> bool:
    if not all(isinstance(term, Value) for term in node.terms().values()):
        return False
    given = model.parameters(name, {})
    return bool(np.all(given["loc"] == 0) and np.all(given["scale"] == 1))


def _affine_in(model: Evaluation, node: Node, z: str) -> bool:
    if node.family != "Normal":
        return False
    return all(_simple(model, term, z if key == "loc" else None) for key, term in node.terms().items())


def _simple(model: Evaluation, term: Term, z: str | None) -> bool:
    """Whether a term is a constant, or (with `z`) an affine function of z alone."""
    if isinstance(term, Name):
        named = model.entries.get(term.name)
        return isinstance(named, Term) and not isinstance(named, Name) and _simple(model, named, z)
    if isinstance(term, Sum):
        return all(_simple(model, part, z) and not isinstance(part, Name) for part in term.terms)
    if isinstance(term, Linear):
        return z is not None and term.of == (z,) and not term.by and term.transform in (None, "identity")
    return isinstance(term, Value | Free)


def observed_side_by_side(subject: Subject) -> Array:
    """The observed nodes' columns: (N, n)."""
    return np.concatenate([subject.rows[name] for name in subject.program.schema.roles.observed], axis=-1)


def decoder_error(subject: Subject, decoder: Affine, drawn: Values) -> float:
    """How far log N(x; Wz + b, ψ) is from log p(x | z) on one draw, at most."""
    (z,) = subject.guide.names
    log_density = reference.log_normal(
        observed_side_by_side(subject), drawn[z] @ decoder.W.T + decoder.b, np.sqrt(decoder.psi)
    )
    return float(np.abs(log_density.sum(-1) - reconstruction(subject, drawn)).max())


def affine_gap(subject: Subject, decoder: Affine) -> tuple[Array, Array, Array]:
    """E1 on every row: log p(x_d), the exact LB_d of the guide, and KL(q ‖ p(z | x_d)); (N,) each."""
    (z,), n = subject.guide.names, len(next(iter(subject.rows.values())))
    x = observed_side_by_side(subject)
    mean, cov = moments(subject.guide, z, subject.rows)
    k = mean.shape[-1]
    mean, cov = np.broadcast_to(mean, (n, k)), np.broadcast_to(cov, (n, k, k))
    log_p = reference.log_marginal_affine(x, decoder.W, decoder.b, decoder.psi)
    bound = reference.lower_bound_affine(x, mean, cov, decoder.W, decoder.b, decoder.psi)
    true_mean, true_cov = reference.factor_analysis_posterior(x, decoder.W, decoder.b, decoder.psi)
    return log_p, bound, reference.kl_multivariate_normal(mean, cov, true_mean, true_cov)
