"""bootstrap: how much a fit's parameters would differ on other rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer import networks, replicates
from ppl_gen.infer.bootstrap import parametric_refits, weighted_refits
from ppl_gen.infer.natural import leaves, natural_map, nested
from ppl_gen.infer.route import em_obstacle
from ppl_gen.results.arviz_bridge import SAMPLED, arviz_module, as_container, dataset
from ppl_gen.results.coords import axis_labels, cell_names, leaf_name, shown
from ppl_gen.results.fit import Fit
from ppl_gen.results.rows import at_least_one, read_rows

Array = NDArray[np.float64]
Kind = Literal["weighted", "resampled", "parametric"]
KINDS = ("weighted", "resampled", "parametric")
TOLERANCE = 1e-8  # nats a row by which a refit's last step may still rise
MAX_STEPS = 1_000

HOW = {
    "weighted": "Bayesian bootstrap: refits under Dirichlet weights of the rows",
    "resampled": "bootstrap: refits to rows drawn with replacement",
    "parametric": "parametric bootstrap: refits to rows drawn from the fitted model",
}


@dataclass(frozen=True, eq=False, repr=False)
class Bootstrap:
    """Refitted parameters, one set a draw.

    Args:
        fit: the fit they are about.
        kind: "weighted", "resampled" or "parametric".
        seed: of the draws.
        flat: all natural parameters end to end, (S, M), classes matched to the fit's.
        converged: (S,), whether each refit met the tolerance.
        collapsed: how many more became singular; they are not among the S.

    """

    fit: Fit
    kind: str
    seed: int
    flat: Array
    converged: NDArray[np.bool_]
    collapsed: int = 0

    def __repr__(self) -> str:
        lost = f", {self.collapsed} collapsed" * bool(self.collapsed)
        return f"Bootstrap({self.kind}, {len(self.flat)} draws{lost}; {self.fit!r})"

    @property
    def draws(self) -> dict[str, dict[str, Any]]:
        """Refitted parameters in the shape of `Fit.parameters`, a leading axis S."""
        return self._nested(self.flat)

    @property
    def standard_errors(self) -> dict[str, dict[str, Any]]:
        """Standard deviations over the draws, in the shape of `Fit.parameters`."""
        return self._nested(self.flat.std(0, ddof=1))

    def intervals(self, level: float = 0.95) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Lower and upper percentiles, each in the shape of `Fit.parameters`."""
        low, high = self._percentiles(level)
        return self._nested(low), self._nested(high)

    def summary(self, *, level: float = 0.95) -> pd.DataFrame:
        """A row for each parameter: estimate, standard error and percentile interval."""
        low, high = self._percentiles(level)
        program = self.fit.program
        estimates = natural_map(program.generative)(dict(program.state_dict())).detach().cpu().numpy()
        names: list[str] = []
        kept: list[bool] = []
        for leaf in leaves(program.generative):
            shape = tuple(leaf.read().shape)
            names += cell_names(program, leaf, shape)
            kept += shown(program, leaf, shape).reshape(-1).tolist()
        columns = {
            "estimate": estimates,
            "standard error": self.flat.std(0, ddof=1),
            "lower": low,
            "upper": high,
        }
        frame = pd.DataFrame(columns, index=pd.Index(names, name="parameter"))[kept]
        frame.attrs = {"kind": self.kind, "level": level}
        return frame

    def to_arviz(self) -> Any:
        """For ArviZ: draws of the parameters as a posterior group that says what they are."""
        program, arrays, start = self.fit.program, [], 0
        for leaf in leaves(program.generative):
            shape = tuple(leaf.read().shape)
            values = self.flat[:, start : start + int(np.prod(shape, dtype=np.int64))]
            start += values.shape[1]
            name = leaf_name(leaf)
            dims = [f"{name}_dim_{axis}" for axis in range(len(shape))]
            labels = axis_labels(program, leaf, shape)
            coords = {dim: [label or "0" for label in own] for dim, own in zip(dims, labels, strict=True)}
            arrays.append(xr.DataArray(values.reshape(1, -1, *shape), coords, [*SAMPLED, *dims], name=name))
        note = f"{HOW[self.kind]}; the draws are independent, and no posterior but of the Bayesian bootstrap"
        az = arviz_module()
        major = int(az.__version__.split(".")[0])
        return as_container(az, {"posterior": dataset(arrays, note=note, drawn_from=self.kind)}, major)

    def _percentiles(self, level: float) -> tuple[Array, Array]:
        if not isinstance(level, int | float) or not 0 < level < 1:
            raise FitError(f"level must lie between 0 and 1, not {level!r}")
        low, high = np.quantile(self.flat, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return low, high

    def _nested(self, flat: Array) -> dict[str, dict[str, Any]]:
        return nested(self.fit.program.generative, flat)


def bootstrap(
    fit: Fit, draws: int = 200, *, kind: Kind = "weighted", data: Any = None, seed: int = 0
) -> Bootstrap:
    """Refit a model to S replicates of its rows, side by side, each beginning at the fit.

    Args:
        fit: whose latents are all discrete, or which has none.
        draws: S.
        kind: "weighted" draws weights of the rows (the Bayesian bootstrap: every row keeps some), "resampled" rows
            with replacement, "parametric" new rows from the fitted model, given the same Inputs, with the same
            cells missing.
        data: the rows; default those it was fitted on, which a loaded Fit has not.
        seed: of the draws.

    Returns:
        The refitted parameters. Classes are matched to the fit's by whom they take (the Hungarian method), since
        any order of them is the same law.

    Raises:
        FitError: a latent is continuous, so that every refit would be SVI's noise as well; there are no rows; or
            fewer than two refits were regular.

    Reference: Efron (1979); Rubin (1981).

    Example:
        >>> import numpy as np
        >>> from ppl_gen import Normal, Spec, bootstrap, fit
        >>> x = np.random.default_rng(0).normal(10, 2, (400, 1))
        >>> drawn = bootstrap(fit(Spec(model={"x": Normal(1)}), {"x": x}), draws=100)
        >>> drawn.standard_errors["x"]["loc"].round(1), (x.std() / 20).round(1)  # σ/√N
        (array([0.1]), np.float64(0.1))

    """
    if kind not in KINDS:
        raise FitError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    draws = at_least_one(draws, "draws")
    program, table = fit.program, _rows_of(fit, data)
    obstacle = em_obstacle(program)
    if obstacle is not None:
        raise FitError(f"bootstrap refits by EM, which cannot fit this model: {obstacle}")
    if (reason := networks.obstacle(program)) is not None:
        raise FitError(f"bootstrap runs the refits side by side, and here {reason}")
    state = dict(program.state_dict())
    options = {"tol": TOLERANCE, "max_steps": MAX_STEPS}
    if kind == "parametric":
        tables = replicates.drawn_tables(program, table, draws, seed)
        refits = parametric_refits(program, state, table, tables, **options)  # type: ignore[arg-type]
    else:
        draw = replicates.bayesian_weights if kind == "weighted" else replicates.resampled_weights
        weights = draw(table, draws, seed)
        refits = weighted_refits(program, state, table, weights, **options)  # type: ignore[arg-type]
    if len(refits.states) < min(2, draws):
        raise FitError(
            f"all of the {draws} refits became singular: a class takes too few rows to be resampled"
        )
    if refits.collapsed:
        _warn(f"{refits.collapsed} of {draws} refits became singular and are left out: errors are too small")
    late = len(refits.converged) - sum(refits.converged)
    if late:
        _warn(
            f"{late} of {draws} refits were still rising after {MAX_STEPS} steps; they are kept as they are"
        )
    flat = replicates.naturals(program, replicates.aligned(program, state, table, refits.states))
    return Bootstrap(fit, kind, seed, flat, np.array(refits.converged), refits.collapsed)


def _rows_of(fit: Fit, data: Any) -> Table:
    if data is not None:
        return read_rows(fit.program, data)
    if fit.data is None:
        raise FitError(
            "this fit holds no rows (it was loaded or streamed): pass them, bootstrap(fit, data=...)"
        )
    return fit.data


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
