"""Families by name → their densities in the reference: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ppl_gen import reference
from ppl_gen.certify.predictors import Array

Given = Mapping[str, Array]
Cell = Callable[[Array, Given], Array]

# Independent cells: log p of each, (…, D), from values and natural parameters. Where a family takes probs or
# logits, it is given the logits.
CELLS: dict[str, Cell] = {
    "Bernoulli": lambda x, p: reference.log_bernoulli(x, p["logits"]),
    "Binomial": lambda x, p: reference.log_binomial(x, p["total_count"], p["logits"]),
    "Exponential": lambda x, p: reference.log_exponential(x, p["rate"]),
    "Gamma": lambda x, p: reference.log_gamma(x, p["concentration"], p["rate"]),
    "LogNormal": lambda x, p: reference.log_log_normal(x, p["loc"], p["scale"]),
    "NegativeBinomial": lambda x, p: reference.log_negative_binomial(x, p["total_count"], p["logits"]),
    "Normal": lambda x, p: reference.log_normal(x, p["loc"], p["scale"]),
    "Poisson": lambda x, p: reference.log_poisson(x, p["rate"]),
    "StudentT": lambda x, p: reference.log_student_t(x, p["df"], p["loc"], p["scale"]),
}

# One density for all dimensions: values (…, D), and the parameters, with the factor L of the matrix L Lᵀ among
# them as "factor".
VECTORS: dict[str, Cell] = {
    "MultivariateNormal": lambda x, p: _log_normal_of_factor(x, p["loc"], p["factor"]),
    "MultivariateStudentT": lambda x, p: reference.log_multivariate_student_t(
        x, p["df"][..., 0], p["loc"], p["factor"]
    ),
}


def pooled(least: Array, width: int) -> Array:
    """The floors of columns' scales, or that of one scale for all of them: their root mean square."""
    return (
        least
        if width == len(least)
        else least.max() * np.sqrt(((least / least.max()) ** 2).mean(keepdims=True))
    )


def _log_normal_of_factor(x: Array, loc: Array, factor: Array) -> Array:
    """Log N(x; loc, L Lᵀ): L⁻¹(x − loc) is standard normal, and the volume changes by the diagonal of L."""
    white = _solved(factor, x - loc)
    log_volume = np.log(np.diagonal(factor, axis1=-2, axis2=-1)).sum(-1)
    return np.asarray(reference.log_normal(white, 0.0, 1.0).sum(-1) - log_volume)


def _solved(factor: Array, apart: Array) -> Array:
    """L⁻¹ v of vectors v (…, N, D); a factor that all rows share, (…, 1, D, D) or (D, D), is taken apart once.

    Each equation is divided by its own largest coefficient, so that columns in units of 1e±200 pivot as others do.
    """
    largest = np.abs(factor).max(-1)
    even, apart = factor / largest[..., None], apart / largest
    if factor.ndim > 2 and factor.shape[-3] != 1:
        return np.asarray(np.linalg.solve(even, apart[..., None])[..., 0])
    shared = even[..., 0, :, :] if factor.ndim > 2 else even
    return np.asarray(np.linalg.solve(shared, apart.swapaxes(-1, -2)).swapaxes(-1, -2))


def over_cells(cells: Array, missing: Array) -> Array:
    """Σ over the last axis of the cells that are not missing."""
    return np.asarray(np.where(missing, 0.0, cells).sum(-1))


def of_seen_part(density: Cell, x: Array, given: Given) -> Array:
    """A vector's density, that of its seen part where cells are NaN: both families are closed under margins."""
    missing = np.isnan(x)
    if not missing.any():
        return np.asarray(density(x, given))
    loc, factor = given["loc"], given["factor"]
    batch = np.broadcast_shapes(x.shape[:-1], loc.shape[:-1], factor.shape[:-2])
    wide = {
        key: np.broadcast_to(value, (*batch, *value.shape[-1:]))
        for key, value in given.items()
        if key not in ("factor", "cov", "scale_tril")
    }
    factor = np.broadcast_to(factor, (*batch, *factor.shape[-2:]))
    x, missing = np.broadcast_to(x, (*batch, x.shape[-1])), np.broadcast_to(missing, (*batch, x.shape[-1]))
    out = np.zeros(batch)
    for pattern in np.unique(missing.reshape(-1, missing.shape[-1]), axis=0):
        if pattern.all():
            continue
        rows, seen = (missing == pattern).all(-1), np.flatnonzero(~pattern)
        matrix = factor[rows] @ factor[rows].swapaxes(-1, -2)
        part = {key: value[rows] for key, value in wide.items()}
        part["loc"] = np.broadcast_to(part["loc"], x[rows].shape)[..., seen]
        part["factor"] = np.linalg.cholesky(matrix[..., seen[:, None], seen])
        out[rows] = density(x[rows][..., seen], part)
    return out
