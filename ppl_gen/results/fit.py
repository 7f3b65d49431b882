"""Fit: a declaration with its parameters, how they were found and checked, and what can be asked of it."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ppl_gen.certify.certificate import Certificate
from ppl_gen.data.table import Table
from ppl_gen.declare.spec import Spec
from ppl_gen.infer.information import Kind
from ppl_gen.infer.run import Mode, Run
from ppl_gen.infer.status import Status
from ppl_gen.program.program import Program
from ppl_gen.results import draws as drawing
from ppl_gen.results import imputing, queries
from ppl_gen.results.queries import Array
from ppl_gen.results.rows import answered, at_least_one

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 100  # of the guide, where a latent is continuous


@dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """A fitted model.

    Args:
        program: the compiled model, its parameters loaded; its schema holds roles, columns, levels, scaling.
        run: the run that found them: history, status, modes, notes.
        algorithm: its name and options.
        seed: of the starts, the draws and the order of the rows.
        n_units: rows it was fitted on, or the sum of their weights.
        log_likelihood: Σ_d log p(x_d) of those rows in nats; importance-weighted with a continuous latent.
        elbo: Σ_d LB_d; equal to the log-likelihood where the posterior is exact.
        certificate: what was checked, and how it came out.
        versions: of the libraries that made it.
        data: the training rows, kept in memory only: a Fit that was loaded has none.

    Queries take rows as `fit` does: arrays by name, one array, a data frame, a file's path, `Rows`. They are held
    against the columns and levels of the training data; DataError says what does not fit.

    Example:
        >>> from ppl_gen.data.reading import read_table
        >>> from ppl_gen.declare.phrasebook import gaussian_mixture
        >>> from ppl_gen.infer.algorithms import EM, described
        >>> from ppl_gen.infer.em import run_em
        >>> spec, data = gaussian_mixture(2, "diagonal"), {"x": [[0.0], [0.5], [1.0], [7.0], [8.0]]}
        >>> table = read_table(data, spec)
        >>> program = Program(spec, table.schema)
        >>> run = run_em(program, table, EM())
        >>> _ = program.load_state_dict(run.state)
        >>> fit = Fit(program, run, described(EM()), 0, 5, *run.history[-1:] * 2, Certificate(()), {}, table)
        >>> fit
        Fit(z: Categorical(2); x: Normal(loc=By(z), scale=By(z)); n=5, log-likelihood=-6.38582, converged)
        >>> fit.predict({"x": [[0.2], [7.7]]})
        array([0, 1])
        >>> fit.parameters["x"]["loc"].round(2).T
        array([[0.5, 7.5]])

    """

    program: Program
    run: Run
    algorithm: dict[str, Any]
    seed: int
    n_units: float
    log_likelihood: float
    elbo: float
    certificate: Certificate
    versions: dict[str, str]
    data: Table | None = None

    def __repr__(self) -> str:
        model = "; ".join(f"{name}: {entry}" for name, entry in self.spec.model.items())
        how = self.status.name.lower().replace("_", " ")
        failed = "" if self.certificate.ok else ", certificate FAILED"
        found = f"n={self.n_units:g}, log-likelihood={self.log_likelihood:.6g}, {how}{failed}"
        return f"Fit({textwrap.shorten(model, 120, placeholder=' …')}; {found})"

    @property
    def spec(self) -> Spec:
        """The declaration."""
        return self.program.spec

    @property
    def parameters(self) -> dict[str, dict[str, Any]]:
        """Estimates on their natural scale, {"x": {"loc": (K, D), …}, …}; of functions, their weights."""
        return self.program.natural()

    @property
    def log_prior(self) -> float:
        """Σ log p of the estimates that have a prior, at their natural values, in nats; 0 where none has.

        What was maximised is the log-likelihood (or the ELBO) plus this; `history` holds the sum.
        """
        return float(self.program.log_prior().detach())

    @property
    def history(self) -> NDArray[np.float64]:
        """The objective after each step or epoch, in nats over all rows: EM's log-likelihood, SVI's ELBO.

        Where parameters have priors, their log-density is in it (`log_prior`).
        """
        return np.asarray(self.run.history, dtype=np.float64)

    @property
    def status(self) -> Status:
        """How the run ended; `status.value` says it in a sentence."""
        return self.run.status

    @property
    def converged(self) -> bool:
        """Whether EM met its tolerance, inside or at the boundary, or `patience` saw SVI's ELBO level off."""
        return self.status.converged

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The maxima that EM's restarts reached, the best first."""
        return self.run.modes

    @property
    def n_parameters(self) -> int:
        """How many identified numbers the model has (rule 12); a guide's are not counted."""
        return self.program.n_parameters

    @property
    def aic(self) -> float:
        """−2 log p(x) + 2 p; the smaller, the better."""
        return -2 * self.log_likelihood + 2 * self.n_parameters

    @property
    def bic(self) -> float:
        """−2 log p(x) + p log n, n in units; the smaller, the better."""
        return -2 * self.log_likelihood + self.n_parameters * math.log(self.n_units)

    def summary(self, data: Any = None, *, kind: Kind = "observed", level: float = 0.95) -> pd.DataFrame:
        """A row for each parameter: estimate, standard error, lower and upper end of its interval, note.

        Errors by the delta method from the observed information −∇² log p(x) (or the sandwich); intervals are
        made on the logarithmic or logit scale where a parameter is bounded. A note says what has no error of its
        own: fixed by the declaration, the reference of others, at the boundary, not identified, or derived.

        Args:
            data: the rows; default those it was fitted on, which a loaded Fit has not.
            kind: "observed", or "sandwich", which holds where the model did not make the rows.
            level: of the intervals.

        Warns, and leaves the errors out, where a latent is continuous or this is no maximum.
        """
        from ppl_gen.results.summary import summary  # imported here: pandas takes its time

        return summary(self, data, kind=kind, level=level)

    def standard_errors(self, data: Any = None, *, kind: Kind = "observed") -> dict[str, dict[str, Any]]:
        """Standard errors in the shape of `parameters`; see `summary`. FitError where there are none."""
        from ppl_gen.results.summary import standard_errors

        return standard_errors(self, data, kind=kind)

    def predict(self, rows: Any, *, draws: int = DRAWS, seed: int = 0) -> Array | dict[str, Array]:
        """The most probable value of each discrete latent; FitError where none is: ask `transform` then.

        Args:
            rows: N rows.
            draws: of the guide, where a latent is continuous.
            seed: of those draws.

        Returns:
            (N,), or (N, dim) for a vector; by name where there are several discrete latents. By level where
            the latent has levels, else codes 0..K−1.

        """
        draws = at_least_one(draws, "draws")

        def ask(table: Table, seed: int) -> dict[str, Array]:
            found = queries.class_probabilities(self.program, table, draws=draws, seed=seed)
            return {name: queries.labels(self.program, name, own) for name, own in found.items()}

        return queries.unwrapped(answered(self.program, rows, seed, ask))

    def predict_proba(self, rows: Any, *, draws: int = DRAWS, seed: int = 0) -> Array | dict[str, Array]:
        """P(z = k | x_d), F7.1's responsibilities: (N, K); by name where there are several discrete latents.

        A vector has a column for each of its K = k^dim values, the last cell turning fastest. Exact where all
        latents are discrete; else averaged over draws of the guide, by importance weights where the guide
        does not name the latent itself. See `predict` for arguments and errors.
        """
        return queries.unwrapped(self._probabilities(rows, draws, seed))

    @overload
    def score_samples(
        self, rows: Any, *, draws: int = ..., seed: int = ..., return_std_error: Literal[False] = ...
    ) -> Array: ...

    @overload
    def score_samples(
        self, rows: Any, *, draws: int = ..., seed: int = ..., return_std_error: Literal[True]
    ) -> tuple[Array, Array]: ...

    def score_samples(
        self, rows: Any, *, draws: int = DRAWS, seed: int = 0, return_std_error: bool = False
    ) -> Array | tuple[Array, Array]:
        """The log-density log p(x_d) of each row, every latent integrated out, in nats: (N,).

        Exact where all latents are discrete. With a continuous one it is E3's importance-weighted bound
        log (1/S) Σ_s p(x_d, z_s)/q(z_s | x_d), below log p(x_d) in the mean and closer with every draw.

        Args:
            rows: N rows.
            draws: S; not used where the value is exact.
            seed: of the draws.
            return_std_error: return (values, standard errors), both (N,); zeros where exact.

        """
        draws = at_least_one(draws, "draws")

        def ask(table: Table, seed: int) -> tuple[Array, Array]:
            return queries.log_densities(self.program, table, draws=draws, seed=seed)

        values, errors = answered(self.program, rows, seed, ask)
        return (values, errors) if return_std_error else values

    def score(self, rows: Any, *, draws: int = DRAWS, seed: int = 0) -> float:
        """The mean of `score_samples` over the rows."""
        return float(self.score_samples(rows, draws=draws, seed=seed).mean())

    def transform(self, rows: Any, *, draws: int = DRAWS, seed: int = 0) -> Array:
        """The guide's means of the continuous latents given each row: (N, sum of their dims), in model order.

        FitError where none is continuous: ask `predict_proba` then.

        Args:
            rows: N rows.
            draws: where the guide samples one latent given another, how many of the earlier one.
            seed: of those draws.

        """
        draws = at_least_one(draws, "draws")

        def ask(table: Table, seed: int) -> Array:
            return queries.posterior_means(self.program, table, draws=draws, seed=seed)

        return answered(self.program, rows, seed, ask)

    def impute(self, rows: Any, *, draws: int | None = None, seed: int = 0) -> dict[str, Array]:
        """The rows with their missing cells filled in from p(missing | seen); FitError with a continuous latent.

        Args:
            rows: N rows, NaN or blank where a cell is missing; a leaf that they lack is missing in every row.
            draws: S completed copies, drawn from the conditional (multiple imputation). Default: one copy, with
                conditional means of reals and counts, and the most probable categories.
            seed: of the draws.

        Returns:
            Name → (N, dim), or (S, N, dim) with `draws`; categories by their levels.

        """
        draws = None if draws is None else at_least_one(draws, "draws")
        parts = list(imputing.imputed_by_part(self.program, rows, draws=draws, seed=seed))
        axis = 0 if draws is None else 1
        return {name: np.concatenate([part[name] for part in parts], axis) for name in parts[0]}

    def sample(self, n: int, *, seed: int = 0, given: Any = None) -> dict[str, Array]:
        """Draw n rows of the model at these parameters, latents too; FitError where Inputs are lacking.

        Args:
            n: rows to draw.
            seed: of the draws; the same seed and n, the same rows.
            given: n rows of the Inputs, where the model has any.

        Returns:
            Name → (n, dim), or (n,) for a scalar Categorical; categories by their levels.

        """
        return drawing.new_rows(self.program, n, given, seed=seed)

    def to_arviz(self, data: Any = None, *, draws: int = DRAWS, seed: int = 0) -> Any:
        """The fit for ArviZ: an InferenceData with ArviZ 0.2x, a DataTree from ArviZ 1 on.

        Its groups: observed_data (a missing cell is NaN, among codes -1), constant_data (Inputs), log_likelihood
        (log p(x_d), the marginal), posterior (latents given the data, partly labelled ones too; parameters are a
        point estimate and are not there), posterior_predictive (new x given those latents), sample_stats (the
        objective by step).

        Args:
            data: rows; default those it was fitted on, which a loaded Fit has not: FitError says so.
            draws: of the latents and of new x for each row, all held in memory.
            seed: of the draws.

        """
        # Imported here: ArviZ, and with it matplotlib, takes seconds to import, and most fits never need it.
        from ppl_gen.results.arviz_bridge import to_arviz

        return to_arviz(self, data, draws=at_least_one(draws, "draws"), seed=seed)

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write a folder that `load` reads: spec.yaml, params.safetensors, fit.json, and history.csv; no rows.

        FitError where something stands there and `replace` is not asked for, or it cannot be written.
        """
        from ppl_gen.results.storage import save_fit  # imported here: storage builds Fits

        save_fit(self, path, replace=replace)

    def _probabilities(self, rows: Any, draws: int, seed: int) -> dict[str, Array]:
        draws = at_least_one(draws, "draws")

        def ask(table: Table, seed: int) -> dict[str, Array]:
            return queries.class_probabilities(self.program, table, draws=draws, seed=seed)

        return answered(self.program, rows, seed, ask)
