"""PyroFit: a user's own Pyro model and guide with their parameters, how those were found and checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import pyro
import torch
from numpy.typing import NDArray

from ppl_gen.certify.certificate import Certificate
from ppl_gen.infer.pyro_bounds import log_densities
from ppl_gen.infer.pyro_pair import PyroPair, UserHalf
from ppl_gen.infer.pyro_rows import own_rows
from ppl_gen.infer.run import Run
from ppl_gen.infer.status import Status
from ppl_gen.results.rows import at_least_one

Array = NDArray[np.float64]
DRAWS = 100


@dataclass(frozen=True, eq=False, repr=False)
class PyroFit:
    """A fitted pair of functions.

    Args:
        pair: the functions, with what they compute with.
        run: the run that found the parameters: history, status, notes.
        algorithm: its name and options.
        seed: of the beginnings, the draws and the order of the rows.
        n_units: rows it was fitted on, or the sum of their weights.
        log_likelihood: Σ_d log p(x_d) of those rows in nats, by importance weights; exact where nothing is drawn.
        elbo: Σ_d LB_d.
        certificate: our bound against Pyro's own.
        dtype: what real numbers of rows are read as.

    """

    pair: PyroPair
    run: Run
    algorithm: dict[str, Any]
    seed: int
    n_units: float
    log_likelihood: float
    elbo: float
    certificate: Certificate
    dtype: torch.dtype = torch.float32

    def __repr__(self) -> str:
        names = " and ".join(
            getattr(own, "__qualname__", type(own).__name__) for own in (self.model, self.guide)
        )
        how = self.status.name.lower().replace("_", " ")
        failed = "" if self.certificate.ok else ", certificate FAILED"
        return f"PyroFit({names}; n={self.n_units:g}, ELBO={self.elbo:.6g}, {how}{failed})"

    @property
    def model(self) -> UserHalf:
        """The user's model."""
        return self.pair.model

    @property
    def guide(self) -> UserHalf:
        """The user's guide."""
        return self.pair.guide

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The estimates as the functions see them, by the names of Pyro's store, as "net$$$0.weight"."""
        found = self.pair.constrained(self.run.state)
        return {name: value.detach().cpu().numpy().copy() for name, value in found.items()}

    @property
    def history(self) -> Array:
        """Each epoch's ELBO as its steps saw it, in nats summed over rows."""
        return np.asarray(self.run.history, dtype=np.float64)

    @property
    def held_out(self) -> Array:
        """The ELBO of held-out rows after each epoch; empty without `validation`."""
        return np.asarray(self.run.held_out, dtype=np.float64)

    @property
    def status(self) -> Status:
        """How the run ended; `status.value` says it in a sentence."""
        return self.run.status

    @property
    def converged(self) -> bool:
        """Whether `patience` saw the ELBO level off."""
        return self.status.converged

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the fit should know, each a sentence."""
        return self.run.notes

    @overload
    def score_samples(
        self, rows: Any, *, draws: int = ..., seed: int = ..., return_std_error: Literal[False] = ...
    ) -> Array: ...

    @overload
    def score_samples(
        self, rows: Any, *, draws: int = ..., seed: int = ..., return_std_error: Literal[True]
    ) -> tuple[Array, Array]: ...

    def score_samples(
        self,
        rows: Any,
        *,
        draws: int = DRAWS,
        seed: int = 0,
        return_std_error: bool = False,
    ) -> Array | tuple[Array, Array]:
        """The log-density log p(x_d) of each row, every latent integrated out, in nats: (N,).

        E3's importance-weighted bound log (1/S) Σ_s p(x_d, z_s)/q(z_s | x_d), below log p(x_d) in the mean and
        closer with every draw; exact where the guide draws nothing.

        Args:
            rows: as `fit_pyro` takes them.
            draws: S.
            seed: of the draws.
            return_std_error: return (values, standard errors), both (N,).

        """
        tensors = own_rows(rows, dtype=self.dtype, device=self.pair.device).tensors
        found = log_densities(self.pair, self.run.state, tensors, at_least_one(draws, "draws"), seed)
        values, errors = (np.asarray(own.numpy(), dtype=np.float64) for own in found)
        return (values, errors) if return_std_error else values

    def score(self, rows: Any, *, draws: int = DRAWS, seed: int = 0) -> float:
        """The mean of `score_samples` over the rows."""
        return float(self.score_samples(rows, draws=draws, seed=seed).mean())

    def to_param_store(self) -> None:
        """Put the estimates into Pyro's store, and into the modules, for Pyro's own tools; other names stay there.

        Example:
            >>> import pyro, torch
            >>> from pyro import distributions as dist
            >>> from ppl_gen import SVI, fit_pyro
            >>> def model(rows):
            ...     scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
            ...     with pyro.plate("rows", len(rows["x"]), dim=-1):
            ...         pyro.sample("x", dist.Normal(0.0, scale), obs=rows["x"])
            >>> found = fit_pyro(model, lambda rows: None, torch.tensor([3.0, -3.0]), SVI(epochs=2))
            >>> pyro.clear_param_store()
            >>> found.to_param_store()
            >>> pyro.param("scale").item() == float(found.parameters["scale"])
            True
            >>> pyro.clear_param_store()

        """
        self.pair.load(self.run.state)
        leaves = self.pair.leaves
        pyro.get_param_store().set_state(
            {"params": dict(leaves.store), "constraints": dict(leaves.constraints)}
        )
