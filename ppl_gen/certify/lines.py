"""The lines of a certificate: each a pure function from plain arrays to a verdict.

`ROUNDING` is the share of a log-density that two float64 evaluations of one formula may differ by: sums of
thousands of terms, some 10⁶ units in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ppl_gen.certify.certificate import Line
from ppl_gen.certify.predictors import Array
from ppl_gen.infer.run import Mode

ROUNDING = 1e-10
LOUIS = 1e-5  # of the terms that cancel: what differences of five values leave
GRADIENT = 1e-3  # nats per row and unit: EM that stops at 1e-8 nats a row ends well inside
IMPOSSIBLE = -1e30  # what stands for log 0 where a label says otherwise
ERRORS = 3  # standard errors by which an estimate may miss


def tolerance(values: Array) -> float:
    """What rounding may do to log-densities of this size."""
    finite = np.abs(values[np.isfinite(values) & (values > IMPOSSIBLE / 2)])
    return ROUNDING * (1 + float(finite.max(initial=0.0)))


def farthest(a: Array, b: Array) -> float:
    """The largest difference of two arrays; where both are −∞ they agree."""
    with np.errstate(invalid="ignore"):
        return float(np.where(a == b, 0.0, np.abs(np.subtract(a, b))).max(initial=0.0))


def ascent(
    history: Sequence[float], n_units: int, rounding: float = ROUNDING, *, priors: bool = False
) -> Line:
    """EM: the log-likelihood, plus the log prior, rose at every iteration (F6), but for rounding."""
    steps = np.diff(np.asarray(history, dtype=np.float64))
    fall = float(max(0.0, -steps.min())) if steps.size else 0.0
    limit = rounding * (abs(history[-1] if history else 0.0) + n_units)
    ok = bool(np.isfinite(steps).all() and fall <= limit)
    falls = int((steps < -limit).sum())
    what = "log-likelihood plus log prior" if priors else "log-likelihood"
    text = (
        f"the {what} never fell in {steps.size} iterations"
        if ok
        else (f"the {what} fell at {falls} of {steps.size} iterations; value: the largest fall, in nats")
    )
    return Line("ascent", ok, fall, limit, text)


def net_rise(history: Sequence[float]) -> Line:
    """SVI: the ELBO is noisy and need not rise at every epoch; its net rise is told."""
    rise = float(history[-1] - history[0]) if len(history) > 1 else 0.0
    text = "net rise of the ELBO over the run, in nats; a stochastic objective need not rise at every epoch"
    return Line("ascent", None, rise, None, text)


def objective(pyro: Array, formula: Array, what: str) -> Line:
    """Pyro's objective and the formula's, row by row."""
    value, limit = farthest(pyro, formula), tolerance(formula)
    ok = bool(value <= limit)
    text = f"{what} on {len(formula)} rows; value: the largest difference of a row, in nats"
    return Line("objective", ok, value, limit, text if ok else f"Pyro differs from the formula: {text}")


def responsibilities(pyro: Mapping[str, Array], formula: Mapping[str, Array], limit: float) -> Line:
    """The E-step's posterior probabilities and F7.1's, site by site."""
    found = {name: farthest(value, formula[name]) for name, value in pyro.items()}
    worst = max(found, key=lambda name: found[name])
    ok = bool(found[worst] <= limit)
    text = "the E-step's posterior probabilities are those of F7.1"
    if not ok:
        text = f"the E-step's posterior probabilities differ from F7.1, most at '{worst}'"
    return Line("responsibilities", ok, found[worst], limit, text)


def prior(program: float, formula: float) -> Line:
    """The log-density of the priors at the estimates: the program's and SciPy's."""
    value, limit = abs(program - formula), ROUNDING * (1 + abs(formula))
    ok = bool(value <= limit)
    text = f"the log prior density of the natural parameters, {formula:.6g} nats, is SciPy's"
    if not ok:
        text = f"the log prior density, {program:.6g} nats, differs from SciPy's, {formula:.6g}"
    return Line("prior", ok, value, limit, text)


def closed_form(pyro: float, formula: float) -> Line:
    """The bound with its KL part in closed form, summed over rows: Pyro's and F9.5's."""
    value, limit = abs(pyro - formula), ROUNDING * (1 + abs(formula))
    ok = bool(value <= limit)
    text = "TraceMeanField_ELBO equals F9.5 (F9.1 with unit variances) on one draw, summed over rows"
    return Line("closed form", ok, value, limit, text if ok else f"Pyro differs from the formula: {text}")


def exact_gap(log_p: Array, bound: Array) -> Line:
    """F2 where the posterior is exact: log p(x) − LB is 0 on every row."""
    value, limit = farthest(log_p, bound), tolerance(log_p)
    ok = bool(value <= limit)
    text = "log p(x) − LB is zero on every row: the posterior is exact (F2, E2)"
    if not ok:
        mean = float(np.mean(log_p - bound))
        text = f"log p(x) − LB is not zero on every row, {mean:.3g} nats in the mean: q is not the posterior"
    return Line("gap", ok, value, limit, text)


def information(found: Array, louis: Array, sizes: Array, rounding: float) -> Line:
    """The curvature of Σ_d log p(x_d) along some directions, and Louis' identity's; `sizes` of its terms."""
    sizes = np.where(sizes > 0, sizes, 1.0)
    value = farthest(found / sizes, louis / sizes)
    limit = LOUIS + rounding
    ok = bool(value <= limit)
    text = (
        "the observed information is that of Louis' identity, E[complete] − Var[complete score], along "
        f"{len(found)} random direction{'s' * (len(found) > 1)}; value: the largest relative difference"
    )
    return Line("information", ok, value, limit, text if ok else f"not so: {text}")


def affine_gap(log_p: Array, bound: Array, kl: Array, decoder_error: float) -> Line:
    """F2 for an affine decoder: log p(x) − LB is KL(q ‖ p(z|x)), which E1 knows.

    `decoder_error` is how far the decoder's W, b, ψ are from giving log p(x|z) itself.
    """
    gap = log_p - bound
    value, limit = float(np.mean(gap)), tolerance(np.concatenate([log_p, bound, kl]))
    error = max(farthest(gap, kl), decoder_error)
    ok = bool(error <= limit and gap.min() >= -limit)
    text = f"log p(x) − LB per row in nats, exact (E1); equals KL(q ‖ p(z|x)) within {limit:.1g}"
    if not ok:
        text = f"log p(x) − LB is not KL(q ‖ p(z|x)) (E1): off by {error:.3g} nats"
    return Line("gap", ok, value, -limit, text)


def estimated_gap(log_p: Array, log_p_error: Array, bound: Array, bound_error: Array) -> Line:
    """F2 by importance weights (E3): the mean of log p(x) − LB must not lie below 0 by more than 3 errors."""
    n = len(log_p)
    value = float(np.mean(log_p - bound))
    error = float(np.sqrt(np.sum(log_p_error**2) + np.sum(bound_error**2)) / n)
    least = -ERRORS * error - tolerance(np.concatenate([log_p, bound]))  # an exact guide has no error at all
    ok = bool(value >= least)
    text = f"log p(x) − LB per row in nats, by importance weights (E3), standard error {error:.2g}"
    return Line("gap", ok, value, least, text if ok else f"a bound above log p(x): {text}")


def gradient(norm: float, converged: bool, exact: bool, outside: int = 0) -> Line:
    """How steep the objective is where the run ended; judged where EM says it has converged.

    `outside` counts the numbers at the edge of their space, which are left aside.
    """
    what = "mean log-likelihood" if exact else "mean ELBO at one draw"
    text = f"norm of the gradient of the {what}, in unconstrained coordinates and the columns' own spread"
    if outside:
        text += f"; {outside} at the edge of their space left aside"
    if not converged:
        return Line("gradient", None, norm, None, text)
    ok = bool(norm <= GRADIENT)
    return Line("gradient", ok, norm, GRADIENT, text if ok else f"not at a maximum: {text}")


def modes(found: Sequence[Mode], finished: int, collapsed: int) -> Line:
    """Which maxima the restarts that were run to their end reached, and how often."""
    if not found:
        text = (
            "one run, one answer: other starts were not tried" if not collapsed else "no restart ended well"
        )
        return Line("modes", None, float(len(found)), None, text)
    best = found[0]
    text = f"{best.hits} of {finished} finished restarts reached the best log-likelihood, {best.log_likelihood:.6g}"
    if len(found) > 1:
        others = ", ".join(f"{mode.log_likelihood:.6g} ({mode.hits})" for mode in found[1:4])
        text += f"; others: {others}" + (", …" if len(found) > 4 else "")
    if collapsed:
        text += f"; {collapsed} collapsed"
    return Line("modes", None, float(len(found)), None, text)


def boundaries(found: Sequence[str]) -> Line:
    """What lies at the edge of its space."""
    return Line("boundaries", None, float(len(found)), None, "; ".join(found) or "none")
