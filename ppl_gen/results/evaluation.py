"""Evaluation: how well a fit describes rows, how good its guide is, and which latents it uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

ACTIVE = 0.01  # variance over rows of a posterior mean above which a dimension is active (Burda et al. 2016)
NO_KL, SHARE = (
    0.01,
    0.99,
)  # nats, and the share of rows below them, of a collapsed dimension (Lucas et al. 2019)
UNRELIABLE = 0.7  # k̂ from which a mean of weights is not to be trusted


@dataclass(frozen=True)
class Estimate:
    """A mean over rows, in nats a row.

    Args:
        value: the mean, rows counted as often as their weights say.
        over_rows: its standard error as a mean over rows drawn at random.
        over_draws: the standard error, on these rows, that draws of the guide leave; 0 where exact.

    Example:
        >>> Estimate(-98.3, 0.9, 0.0)
        -98.3000 ± 0.9000 over rows
    """

    value: float
    over_rows: float
    over_draws: float

    def __repr__(self) -> str:
        noise = f", ± {self.over_draws:.4f} over draws" if self.over_draws else ""
        return f"{self.value:.4f} ± {self.over_rows:.4f} over rows{noise}"


@dataclass(frozen=True, eq=False)
class LatentUse:
    """What the rows tell of one latent.

    Args:
        name: of the latent; of several discrete ones that the model sums out together, their names.
        kl: KL(q(z | x_d) ‖ p(z)) of each row, (N,); of a class that is summed out, of its exact posterior.
        cells: the KL of each dimension's marginal, (N, D); None of a discrete latent, and where it is not known.
        mean: of the posterior, (N, D); None of a discrete latent.
        variance: of the posterior, (N, D).
        mean_error: the standard error over draws of `mean`, (N, D).

    """

    name: str
    kl: Array
    cells: Array | None = None
    mean: Array | None = None
    variance: Array | None = None
    mean_error: Array | None = None


@dataclass(frozen=True, eq=False)
class Amortisation:
    """What the encoder loses against posteriors of its own family fitted row by row.

    Args:
        rows: the numbers of the rows that this was done for.
        encoder: their ELBOs under the guide, (n,).
        fitted: under parameters of their own.
        error: the standard error over draws of the difference, (n,).
        steps: of Adam.

    """

    rows: NDArray[np.int64]
    encoder: Array
    fitted: Array
    error: Array
    steps: int

    @property
    def gap(self) -> Estimate:
        """What the fitted ones gain; a lower bound of it where more steps would still climb."""
        return estimate(self.fitted - self.encoder, self.error)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """How a fit does on some rows; every figure is a mean over them, in nats a row.

    Args:
        draws: of the guide, for each row; 0 where nothing had to be drawn.
        seed: of the draws.
        exact: why log p(x) is exact; empty where it is estimated by importance weights.
        per_row: "log_likelihood" with its "log_likelihood_error", "elbo" and "elbo_error" over the draws,
            "reconstruction", "kl", "effective_draws" and "pareto_k": (N,) each.
        usage: of each latent.
        amortisation: None where there is no encoder, or it was not asked for.
        weights: how often each row counts; None: once.
        active: the variance of its posterior mean over rows above which a dimension is active.
        bare: whether ELBO and log p(x) are one number because the posterior is exact.

    Example:
        >>> import numpy as np
        >>> from ppl_gen import evaluate, fit, gaussian_mixture
        >>> x = np.random.default_rng(0).normal(size=(60, 1)) + np.repeat([[0.0], [8.0]], 30, axis=0)
        >>> found = evaluate(fit(gaussian_mixture(2), {"x": x}))
        >>> found.gap.value, found.latents["kl"].round(2).tolist()  # log 2: the rows tell the class
        (0.0, [0.69])
    """

    draws: int
    seed: int
    exact: str
    per_row: Mapping[str, Array]
    usage: tuple[LatentUse, ...]
    amortisation: Amortisation | None = None
    weights: Array | None = None
    active: float = ACTIVE
    bare: bool = False

    def __repr__(self) -> str:
        used = "; ".join(self.verdicts)
        return f"Evaluation({len(self)} rows: log p(x) {self.log_likelihood}; ELBO {self.elbo.value:.4f}; {used})"

    def __str__(self) -> str:
        return self.summary()

    def __len__(self) -> int:
        return len(self.per_row["elbo"])

    @property
    def log_likelihood(self) -> Estimate:
        """Log p(x): exact, or log (1/S) Σ_s p(x, z_s)/q(z_s | x), which lies below it in the mean (E3)."""
        return self._estimate("log_likelihood", self.per_row["log_likelihood_error"])

    @property
    def bias(self) -> float:
        """How far below log p(x) its estimate lies in the mean, to first order: half the squared error of a row."""
        return float(np.average(self.per_row["log_likelihood_error"] ** 2, weights=self.weights) / 2)

    @property
    def elbo(self) -> Estimate:
        """E_q[log p(x, z) − log q(z | x)] (F2)."""
        return self._estimate("elbo", self.per_row["elbo_error"])

    @property
    def reconstruction(self) -> Estimate:
        """E_q[log p(x | z)], the ELBO without its KL (F3.2)."""
        return self._estimate("reconstruction", self.per_row["elbo_error"])

    @property
    def kl(self) -> Estimate:
        """KL(q(z | x) ‖ p(z)) of all latents."""
        return self._estimate("kl", None)

    @property
    def gap(self) -> Estimate:
        """Log p(x) − ELBO = KL(q(z | x) ‖ p(z | x)) (F2)."""
        return estimate(self.per_row["log_likelihood"] - self.per_row["elbo"], None, self.weights)

    @property
    def unreliable(self) -> int:
        """Rows whose k̂ is above 0.7: neither their log p(x) nor its error is to be trusted."""
        return int((self.per_row["pareto_k"] > UNRELIABLE).sum())

    @property
    def latents(self) -> pd.DataFrame:
        """A line for each dimension of each latent, and one for a discrete latent.

        Columns: latent; dimension; kl, in nats a row; active; collapsed, whether that KL is below 0.01 in 99 % of
        the rows; mean_variance, the variance over rows of the posterior mean, of which `active` judges;
        posterior_variance, the mean over rows of the posterior's variance.
        """
        import pandas as pd

        lines = [line for use in self.usage for line in self._lines(use)]
        names = ["latent", "dimension", "kl", "active", "collapsed", "mean_variance", "posterior_variance"]
        return pd.DataFrame(lines, columns=names)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Of each latent, a sentence on whether the rows use it."""
        frame = self.latents
        return tuple(self._verdict(use, frame[frame["latent"] == use.name]) for use in self.usage)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """The latents that say nothing of the rows: none of their dimensions is active."""
        frame = self.latents
        return tuple(
            use.name for use in self.usage if not frame.loc[frame["latent"] == use.name, "active"].any()
        )

    def summary(self) -> str:
        """All figures as text."""
        from ppl_gen.results.evaluation_text import evaluation_text

        return evaluation_text(self)

    def to_dict(self) -> dict[str, Any]:
        """All figures but those by row, in plain numbers, texts and lists; None for what is not a number."""
        from ppl_gen.results.evaluation_text import evaluation_dict

        return evaluation_dict(self)

    def _estimate(self, name: str, error: Array | None) -> Estimate:
        return estimate(self.per_row[name], error, self.weights)

    def _lines(self, use: LatentUse) -> list[tuple[Any, ...]]:
        def mean(values: Array | NDArray[np.bool_]) -> Array:
            return np.asarray(np.average(values, axis=0, weights=self.weights))

        if use.mean is None or use.variance is None or use.mean_error is None:
            collapsed = bool(mean(use.kl < NO_KL) >= SHARE)
            return [(use.name, 0, float(mean(use.kl)), not collapsed, collapsed, math.nan, math.nan)]
        # What draws add to the variance of estimated means is taken off again.
        spread = mean((use.mean - mean(use.mean)) ** 2 - use.mean_error**2).clip(min=0)
        active = spread > self.active
        kl, low = np.full(len(spread), math.nan), ~active
        if use.cells is not None:
            kl, low = mean(use.cells), mean(use.cells < NO_KL) >= SHARE
        columns = (kl.tolist(), active.tolist(), low.tolist(), spread.tolist(), mean(use.variance).tolist())
        return [(use.name, j, *own) for j, own in enumerate(zip(*columns, strict=True))]

    def _verdict(self, use: LatentUse, lines: pd.DataFrame) -> str:
        kl, active = float(np.average(use.kl, weights=self.weights)), int(lines["active"].sum())
        if use.mean is None:
            return f"{use.name} {'is active' if active else 'has collapsed: its posterior is its prior'}"
        if active == len(lines):
            return f"{use.name}: all {active} dimensions active" if active > 1 else f"{use.name} is active"
        if active:
            return f"{use.name}: {active} of {len(lines)} dimensions active"
        if lines["collapsed"].all():
            return f"{use.name} has collapsed: its posterior is its prior in every row"
        return (
            f"{use.name} is inactive: its posterior hardly varies from row to row, at a cost of {kl:.3g} nats"
        )


def estimate(values: Array, error: Array | None, weights: Array | None = None) -> Estimate:
    """The mean of rows, weighted as whole rows are, with its standard errors.

    Args:
        values: by row.
        error: the standard error of each over independent draws; None: not known, or none.
        weights: how often each row counts.

    Example:
        >>> estimate(np.array([1.0, 2.0, 3.0]), None)  # sd 1 over √3
        2.0000 ± 0.5774 over rows
    """
    own = np.ones(len(values)) if weights is None else weights
    total = float(own.sum())
    mean = float(np.average(values, weights=own))
    squares = float((own * (values - mean) ** 2).sum())
    over_rows = math.sqrt(squares / (total - 1) / total) if total > 1 else math.nan
    noise = 0.0 if error is None else float(np.sqrt(((own * error) ** 2).sum()) / total)
    return Estimate(mean, over_rows, noise)
