"""The table of a fit's parameters: estimates, standard errors, intervals, and what is to be said of each."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer import linear_gaussian
from ppl_gen.infer.identified import BOUNDARY
from ppl_gen.infer.information import KINDS, Kind, Uncertainty, uncertainty
from ppl_gen.infer.natural import leaves, natural_map
from ppl_gen.infer.shares import class_shares, derived
from ppl_gen.program.program import Program
from ppl_gen.results.coords import MATRICES, cell_names, shown
from ppl_gen.results.rows import read_rows

if TYPE_CHECKING:
    from ppl_gen.results.fit import Fit

Array = NDArray[np.float64]

COLUMNS = ["estimate", "standard error", "lower", "upper", "note"]
MOST_PREDICTORS = 2_000  # beyond, second derivatives are not taken
SAMPLED = (
    "standard errors need log p(x), and with a continuous latent only a bound of it is known: estimates alone"
)
ROTATED = (
    "loadings on a continuous latent are identified up to its rotation, and have no standard errors of their own: "
    "estimates alone"
)
NO_ROWS = (
    "this fit holds no rows (it was loaded or streamed): pass them, summary(data=...), for standard errors"
)


def summary(fit: Fit, data: Any, *, kind: Kind, level: float) -> pd.DataFrame:
    """The frame of `Fit.summary`."""
    if not isinstance(level, int | float) or not 0 < level < 1:
        raise FitError(f"level must lie between 0 and 1, not {level!r}")
    found, why = _errors_of(fit, data, kind)
    for sentence in (why, found.problem if found is not None else None):
        if sentence:
            warnings.warn(sentence, UserWarning, stacklevel=3)
    rows = parameter_rows(fit.program, found, level)
    if found is not None and found.problem is None:
        rows += _share_rows(found, _rows_of(fit, data), level)
    frame = pd.DataFrame([row for _, row in rows], index=[name for name, _ in rows], columns=COLUMNS)
    frame.index.name = "parameter"
    frame.attrs = {"kind": kind if found is not None else None, "level": level}
    return frame


def standard_errors(fit: Fit, data: Any, *, kind: Kind) -> dict[str, dict[str, Any]]:
    """The arrays of `Fit.standard_errors`; FitError where there are none."""
    found, why = _errors_of(fit, data, kind)
    if found is None:
        raise FitError(why)
    if found.problem:
        warnings.warn(found.problem, UserWarning, stacklevel=3)
    return found.errors


def _errors_of(fit: Fit, data: Any, kind: Kind) -> tuple[Uncertainty | None, str]:
    """The fit's errors, or None and why there are none."""
    if kind not in KINDS:
        raise FitError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    program = fit.program
    if program.continuous or program.recognition.draws:
        return None, ROTATED if linear_gaussian.exact(program) else SAMPLED
    learned = sum(parameter.numel() for parameter in program.generative.parameters())
    if learned > MOST_PREDICTORS:
        return (
            None,
            f"standard errors are not computed for more than {MOST_PREDICTORS} numbers, here {learned}",
        )
    if data is None and fit.data is None:
        return None, NO_ROWS
    return uncertainty(program, program.state_dict(), _rows_of(fit, data), kind), ""


def _rows_of(fit: Fit, data: Any) -> Table:
    if data is not None:
        return read_rows(fit.program, data)
    assert fit.data is not None
    return fit.data


def parameter_rows(program: Program, found: Uncertainty | None, level: float) -> list[tuple[str, list[Any]]]:
    """One row for each number among the natural parameters, with its name."""
    if found is None:
        state = dict(program.state_dict())
        estimates = natural_map(program.generative)(state).detach().cpu().double().numpy()
        errors, status = np.full(len(estimates), np.nan), np.full(len(estimates), "")
    else:
        estimates, errors, status = found.estimates, found.flat_errors, found.status
    rows: list[tuple[str, list[Any]]] = []
    start = 0
    for leaf in leaves(program.generative):
        shape = tuple(leaf.read().shape)
        own = slice(start, start + math.prod(shape))
        start = own.stop
        names, kept = cell_names(program, leaf, shape), shown(program, leaf, shape).reshape(-1)
        scales = _scales(leaf.constraint, shape).reshape(-1)
        notes = _notes(leaf.constraint, shape, names, estimates[own], status[own])
        cells = zip(names, estimates[own], errors[own], notes, scales, kept, strict=True)
        for name, estimate, error, note, scale, listed in cells:
            if listed:
                bounds = interval(float(estimate), float(error), str(scale), level)
                rows.append((name, [float(estimate), float(error), *bounds, str(note)]))
    return rows


def _notes(
    constraint: str, shape: tuple[int, ...], names: list[str], estimates: Array, status: NDArray[np.str_]
) -> list[str]:
    """What is said of each number: its status, and of a probability at 1 which others are at 0."""
    notes = [str(own) for own in status]
    if constraint != "simplex":
        return notes
    K = shape[-1]
    for position, estimate in enumerate(estimates):
        row = range(position - position % K, position - position % K + K)
        if notes[position] == BOUNDARY and estimate > 0.5:  # not itself at 0: nothing is left for it to move
            at_zero = [names[i] for i in row if status[i] == BOUNDARY and i != position]
            notes[position] = f"{BOUNDARY}: {' and '.join(at_zero)} at 0"
    return notes


def _scales(constraint: str, shape: tuple[int, ...]) -> NDArray[np.str_]:
    """The scale on which each number of an array has its interval."""
    if constraint in MATRICES:
        return np.broadcast_to(np.where(np.eye(shape[-1], dtype=bool), "log", "identity"), shape)
    scale = {"positive": "log", "unit_interval": "logit", "simplex": "logit"}.get(constraint, "identity")
    return np.full(shape, scale)


def interval(estimate: float, error: float, scale: str, level: float) -> tuple[float, float]:
    """Estimate ± z·error on the unconstrained scale ("identity", "log" or "logit"), taken back.

    Example:
        >>> [round(bound, 3) for bound in interval(0.5, 0.1, "logit", 0.95)]
        [0.313, 0.687]

    """
    z = float(ndtri(0.5 + level / 2))
    if not math.isfinite(error):
        return math.nan, math.nan
    if error == 0:
        return estimate, estimate
    if scale == "log" and estimate > 0:
        reach = z * error / estimate
        with np.errstate(over="ignore"):  # of a number that is hardly told from 0 the upper bound is infinite
            return float(np.exp(np.log(estimate) - reach)), float(np.exp(np.log(estimate) + reach))
    if scale == "logit" and 0 < estimate < 1:
        reach = z * error / (estimate * (1 - estimate))
        return float(expit(logit(estimate) - reach)), float(expit(logit(estimate) + reach))
    return estimate - z * error, estimate + z * error


def _share_rows(found: Uncertainty, table: Table, level: float) -> list[tuple[str, list[Any]]]:
    """Shares of the classes where they are not parameters themselves."""
    rows = []
    for name in derived(found.phi.program):
        value, slope = (tensor.numpy() for tensor in class_shares(found.phi, table, name))
        errors = np.sqrt(np.einsum("kp,pq,kq->k", slope, found.predictors, slope).clip(min=0))
        levels = found.phi.program.schema.levels.get(name, (None,))[0] or range(len(value))
        for label, estimate, error in zip(levels, value, errors, strict=False):
            bounds = interval(float(estimate), float(error), "logit", level)
            rows.append((f"share[{name}={label}]", [float(estimate), float(error), *bounds, "derived"]))
    return rows
