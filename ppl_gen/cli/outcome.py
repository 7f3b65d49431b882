"""What the commands print of a fit: how its run ended, its maxima, its parameters with their errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ppl_gen.cli.printing import aligned, priors_of
from ppl_gen.data.reading import read_table
from ppl_gen.errors import FitError
from ppl_gen.infer.plan import plan
from ppl_gen.resampling import HOW, Bootstrap
from ppl_gen.results.summary import NO_ROWS

if TYPE_CHECKING:
    from ppl_gen.data.table import Table
    from ppl_gen.results.fit import Fit

SHOWN_NUMBERS = 60  # of one parameter, where it is no table; a larger one is told by its shape
LISTED = 400  # numbers of a fit, of each of which a table has a line
SHOWN_MODES = 10
DIGITS = {"estimate": 6, "standard error": 3, "lower": 5, "upper": 5}


def own_rows(fit: Fit, data: Path | None, weights: str | None) -> Table | None:
    """The rows that a fit was made on, read again; None where none are named.

    Raises:
        DataError: they do not fit its columns and levels.
        FitError: they are not as many as it was made on, or lack a column that was observed.

    """
    if data is None:
        if weights is not None:
            raise FitError(f"--weights {weights}: is a column of --data, which is left out")
        return None
    table = read_table(data, fit.spec, schema=fit.program.schema, weights=weights)
    lacking = [name for name in fit.program.schema.roles.observed if name not in table.arrays]
    if lacking:
        raise FitError(f"{data}: has no {', '.join(lacking)}, which the fit's own rows had")
    if not math.isclose(table.total, fit.n_units, rel_tol=1e-9):
        raise FitError(
            f"{data}: the rows count {table.total:g}, and the fit was made on {fit.n_units:g}; give the rows it "
            "was made on, with --weights where it had any"
        )
    return table


def fit_text(fit: Fit, rows: Table | None, *, level: float) -> str:
    """A fit in full: declaration, roles, how it ended, parameters with their errors, certificate."""
    roles, options = fit.program.schema.roles, dict(fit.algorithm)
    name = options.pop("name", "")
    facts = {
        "observed": ", ".join(roles.observed),
        "latent": ", ".join(roles.latent) or "none",
        "inputs": ", ".join(roles.inputs) or "none",
        "algorithm": f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})",
        "seed": str(fit.seed),
    }
    if planned := list(plan(fit.program, fit.algorithm)):
        facts["plan"] = "\n".join(planned)
    parts = [f"{fit.spec}\n{aligned(facts)}\n{_ending(fit)}", _modes(fit), _estimates(fit, rows, level)]
    return _apart([*parts, str(fit.certificate)])


def outcome_text(fit: Fit) -> str:
    """How a fit ended: status, likelihood, maxima, parameters, certificate."""
    return _apart([_ending(fit), _modes(fit), _arrays(fit), str(fit.certificate)])


def bootstrap_text(found: Bootstrap, *, level: float) -> str:
    """What was refitted, and each parameter with its standard error and percentiles."""
    lost = f", and {found.collapsed} that became singular and are left out" * bool(found.collapsed)
    how = f"{HOW[found.kind]}; {len(found.flat)} refits{lost}, seed {found.seed}"
    return _apart([how, table_text(found.summary(level=level))])


def table_text(frame: pd.DataFrame) -> str:
    """A summary's lines; columns in which nothing stands are left out.

    Example:
        >>> cells = {"estimate": [2.0364], "standard error": [0.02657], "lower": [np.nan], "note": [""]}
        >>> print(table_text(pd.DataFrame(cells, index=["x.loc[z=1]"])))
        parameter   estimate  standard error
        x.loc[z=1]    2.0364          0.0266

    """
    names = ["parameter", *map(str, frame.index)]
    columns = [[name.ljust(max(map(len, names))) for name in names]]
    for column in frame:
        digits = DIGITS.get(str(column))
        cells = [_cell(value, digits) for value in frame[column]]
        if any(cells):
            width = max(map(len, [str(column), *cells]))
            adjust = str.ljust if digits is None else str.rjust
            columns.append([adjust(cell, width) for cell in (str(column), *cells)])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _cell(value: Any, digits: int | None) -> str:
    if digits is None:
        return str(value)
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def _ending(fit: Fit) -> str:
    """Status, steps, what was left to climb, likelihood and criteria, notes."""
    exact = not fit.program.continuous
    facts = {
        "status": fit.status.value,
        "run": _run(fit),
        "log-lik.": f"{fit.log_likelihood:.6f} nats over {fit.n_units} rows{'' if exact else ' (estimated)'}",
        "ELBO": f"{fit.elbo:.6f}",
        **({"log prior": f"{fit.log_prior:.6f}"} if any(priors_of(fit.spec)) else {}),
        "AIC, BIC": f"{fit.aic:.3f}, {fit.bic:.3f} with {fit.n_parameters} free numbers",
    }
    if fit.run.notes:
        facts["notes"] = "\n".join(fit.run.notes)
    return aligned(facts)


def _run(fit: Fit) -> str:
    """How far the run went. A fit that was loaded has only what its folder keeps."""
    run = fit.run
    if fit.algorithm.get("name") != "EM":
        return f"{len(run.history)} epochs of {run.lowering} steps"
    said = [f"{max(len(run.history) - 1, 0)} rises of the log-likelihood"]
    if run.evaluations:
        said.append(f"{run.evaluations} evaluations of the EM map")
    if math.isfinite(run.remaining):
        said.append(f"by Aitken's estimate {run.remaining:.1e} nats were left to climb")
    return "; ".join(said)


def _modes(fit: Fit) -> str:
    """The maxima that restarts reached, in a table; nothing where there was one start."""
    modes = fit.modes
    if not modes or (len(modes) == 1 and fit.run.restarts == 1):
        return ""
    latent = next(iter(fit.program.enumerated), None)
    shares = latent is not None and any(mode.shares for mode in modes[:SHOWN_MODES])
    lines = [f"log-likelihood  restarts{f'  shares of {latent}' if shares else ''}"]
    for mode in modes[:SHOWN_MODES]:
        own = "  " + " ".join(f"{share:.3f}" for share in mode.shares) if shares else ""
        lines.append(f"{mode.log_likelihood:14.4f}  {mode.hits:8d}{own}")
    if len(modes) > SHOWN_MODES:
        lines.append(f"and {len(modes) - SHOWN_MODES} more maxima")
    return "\n".join(lines)


def _estimates(fit: Fit, rows: Table | None, level: float) -> str:
    """The table of `Fit.summary`; where that would be the weights of networks, arrays instead."""
    count = sum(parameter.numel() for parameter in fit.program.generative.parameters())
    if fit.program.continuous or count > LISTED:
        return _arrays(fit)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        frame = fit.summary(rows, level=level)
    messages = [str(warning.message) for warning in said]
    errors = "standard errors are computed from the rows, which the folder has not: add --data DATA"
    told = [errors if message == NO_ROWS else message for message in messages]
    return "\n".join([table_text(frame), *told])


def _arrays(fit: Fit) -> str:
    return aligned(
        {
            f"{name}.{key}": _numbers(value)
            for name, own in fit.parameters.items()
            for key, value in own.items()
        }
    )


def _numbers(value: Any) -> str:
    """A parameter's numbers where they are few, else its shape; of a function, each of its parts."""
    if isinstance(value, np.ndarray):
        if value.size <= SHOWN_NUMBERS:
            return np.array2string(value, precision=4, suppress_small=True, max_line_width=90)
        return f"{' × '.join(map(str, value.shape))} numbers"
    if isinstance(value, Mapping):
        return "\n".join(f"{key} {_numbers(own)}" for key, own in value.items())
    if isinstance(value, list):
        return ", ".join(map(_numbers, value))
    return str(value)


def _apart(parts: Iterable[str]) -> str:
    """Parts that have something to say, a blank line between them."""
    return "\n\n".join(part for part in parts if part)
