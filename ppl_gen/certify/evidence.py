"""What Pyro says: each number of a certificate that the compiled program answers for, as NumPy arrays.

One function a number, and each is read by one line, so that a fault shows in the line it belongs to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_gen.certify.predictors import Array
from ppl_gen.certify.subject import Subject
from ppl_gen.data.table import Table
from ppl_gen.infer import linear_gaussian_posterior
from ppl_gen.infer.elbo import TraceableELBO, functional_pair
from ppl_gen.infer.enumeration import log_marginal as enumerated_log_marginal
from ppl_gen.infer.enumeration import posterior_marginals
from ppl_gen.infer.enumeration import site_log_probs as enumerated_log_probs
from ppl_gen.infer.gradient import mean_gradient as standard_gradient
from ppl_gen.infer.identified import Identified, identified
from ppl_gen.infer.importance import importance_log_likelihood
from ppl_gen.infer.information import information_at, scores, second_derivatives
from ppl_gen.program.lowering import pyro_scope

CELLS = 4_000_000  # numbers of one tensor held at a time
BLOCK = 16_384


@contextmanager
def quiet(seed: int = 0) -> Iterator[None]:
    """Pyro in a scope of its own, from a seed, without gradients; the generator is put back."""
    with pyro_scope(), torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Latents in another order than the model's: KL terms do not mind, and mean_field has been checked.
        warnings.filterwarnings("ignore", message="Failed to verify mean field")
        torch.manual_seed(seed)
        yield


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().numpy())


def log_marginal(subject: Subject) -> Array:
    """Log p(x_d) with the discrete latents enumerated: (N,)."""
    with quiet():
        return _array(enumerated_log_marginal(subject.program, subject.state, subject.tensors))


def responsibilities(subject: Subject) -> dict[str, Array]:
    """The E-step's posterior marginals by site, (…enumerated, N)."""
    with quiet():
        _, marginals = posterior_marginals(subject.program, subject.state, subject.tensors)
    return {name: _array(value) for name, value in marginals.items()}


def site_log_probs(subject: Subject) -> dict[str, Array]:
    """Every site's log p at all values of the discrete latents: (…enumerated, N)."""
    with quiet():
        sites = enumerated_log_probs(subject.program, subject.state, subject.tensors)
    return {name: _array(value) for name, value in sites.items()}


def log_joint_table(subject: Subject) -> Array:
    """The enumerated sites' log-probabilities, summed: (N, K) over all joint states."""
    total = sum(site_log_probs(subject).values(), np.zeros(()))
    return np.asarray(total.reshape(-1, total.shape[-1]).T)


def posterior(subject: Subject) -> Array:
    """q(z | x_d) of an exact fit, (N, K): the enumerated log-joint, normalised."""
    table = log_joint_table(subject)
    weights = np.exp(table - table.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def enumerated_bound(subject: Subject) -> float:
    """Σ_d LB_d by stock `TraceEnum_ELBO`, which sums the latents out of the model: the bound at q = r."""
    model, guide = functional_pair(subject.program, subject.state)
    with quiet():
        return -float(TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, subject.tensors))


def recording(guide: Callable[..., Any], into: dict[str, Array]) -> Callable[..., Any]:
    """The guide, noting the values it hands out."""

    def noted(*args: Any, **kwargs: Any) -> Any:
        values = guide(*args, **kwargs)
        into.update({name: _array(value) for name, value in values.items()})
        return values

    return noted


def sampled_bound(subject: Subject, seed: int) -> tuple[Array, dict[str, Array]]:
    """LB_d on one draw of the guide by the objective SVI climbs, (N,), and the draw."""
    drawn: dict[str, Array] = {}
    model, guide = functional_pair(subject.program, subject.state)
    with quiet(seed):
        bound = TraceableELBO().per_row(model, recording(guide, drawn), subject.tensors)
    return _array(bound), drawn


def closed_bound(subject: Subject, seed: int) -> tuple[float, dict[str, Array]]:
    """Σ_d LB_d by `TraceMeanField_ELBO` on one draw of the guide, and the draw."""
    drawn: dict[str, Array] = {}
    model, guide = functional_pair(subject.program, subject.state)
    with quiet(seed):
        loss = TraceMeanField_ELBO().loss(model, recording(guide, drawn), subject.tensors)
    return -float(loss), drawn


def guide_draw(subject: Subject, seed: int) -> dict[str, Array]:
    """One draw of the guide for each row; discrete latents it names at all their values."""
    drawn: dict[str, Array] = {}
    _, guide = functional_pair(subject.program, subject.state)
    with quiet(seed):
        poutine.enum(recording(guide, drawn), first_available_dim=-2)(subject.tensors)
    return drawn


def traces_at(subject: Subject, drawn: dict[str, Array]) -> tuple[Any, Any]:
    """Pyro's traces of model and guide at a draw of the guide, log-probabilities computed."""
    values = subject.program.tensors(drawn)
    with quiet():
        model, guide = (
            poutine.trace(poutine.condition(half, data=values)).get_trace(subject.tensors)
            for half in functional_pair(subject.program, subject.state)
        )
        model.compute_log_prob()
        guide.compute_log_prob()
    return model, guide


def site_log_probs_at(subject: Subject, drawn: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Log p of the model's sites and log q of the guide's at a draw: (…, N) each."""
    model, guide = traces_at(subject, drawn)
    return (
        {name: _array(model.nodes[name]["log_prob"]) for name in subject.model.names},
        {name: _array(guide.nodes[name]["log_prob"]) for name in subject.guide.names},
    )


def kl_terms(subject: Subject, drawn: dict[str, Array]) -> dict[str, Array]:
    """KL(q ‖ p) of each latent by the closed form registered for its distributions: (N,) each."""
    model, guide = traces_at(subject, drawn)
    with quiet():
        return {
            name: _array(kl_divergence(guide.nodes[name]["fn"], model.nodes[name]["fn"]))
            for name in subject.guide.names
        }


def importance_weighted(subject: Subject, seed: int, draws: int = 100) -> tuple[Array, Array]:
    """Log p(x_d) by importance weights (E3) and its standard error: (N,), (N,)."""
    tensors, schema = subject.tensors, subject.program.schema
    n = len(next(iter(subject.rows.values())))
    step = max(1, CELLS // (draws * max(schema.dims.values())))
    parts = [
        importance_log_likelihood(
            subject.program,
            subject.state,
            {name: value[start : start + step] for name, value in tensors.items()},
            draws=draws,
            seed=seed + start,
        )
        for start in range(0, n, step)
    ]
    return _array(torch.cat([p for p, _ in parts])), _array(torch.cat([e for _, e in parts]))


def information(subject: Subject) -> tuple[Identified, Array]:
    """−∇² Σ_d log p(x_d) over the subject's rows, and the predictors it is in: (P, P)."""
    phi, table = in_standard_units(subject)
    return phi, information_at(phi, table, prior=False)


def curvature_along(subject: Subject, directions: Array) -> Array:
    """−vᵀ [∇² Σ_d log p(x_d)] v of a few directions v (V, P) of the same predictors: (V,)."""
    phi, table = in_standard_units(subject)
    return second_derivatives(phi, table, directions)


def squared_scores(subject: Subject) -> tuple[Identified, Array]:
    """The same predictors, and Σ_d of the squares of ∇ log p(x_d): (P,)."""
    phi, table = in_standard_units(subject)
    return phi, np.asarray((scores(phi, table) ** 2).sum(0))


def in_standard_units(subject: Subject) -> tuple[Identified, Table]:
    """The predictors that move and the rows, both in standard units where there are: no square overflows there."""
    phi, table = identified(subject.program, subject.state, subject.table.n_units), subject.table
    standard = subject.standard
    if standard is None:
        return phi, table
    arrays = {
        name: (array - standard.shift[name].numpy()) / standard.unit[name].numpy()
        if name in standard.shift
        else array
        for name, array in table.arrays.items()
    }
    base = {path: value.detach() for path, value in standard.enter(subject.state).items()}
    return replace(phi, base=base), replace(table, arrays=arrays)


def gradient_in_standard_units(subject: Subject, table: Table) -> dict[str, Array]:
    """The gradient of the mean log p(x) by parameter, where EM can run and columns can be standardised."""
    found = standard_gradient(subject.program, subject.state, table)
    return {path: _array(own) for path, own in found.items()}


def linear_gaussian_gradient(subject: Subject, table: Table) -> dict[str, Array]:
    """The gradient of the mean log p(x) of all rows by parameter, where every latent is linear-Gaussian."""
    found = linear_gaussian_posterior.mean_gradient(subject.program, subject.state, table)
    return {path: _array(own) for path, own in found.items()}


def mean_gradient(subject: Subject, table: Table, seed: int) -> dict[str, Array]:
    """The gradient of the mean objective by parameter.

    Of log p(x) over all rows of the table where it is exact; else of the ELBO, on the subject's rows, at one
    draw each.
    """
    program = subject.program
    names = [path for path, _ in program.named_parameters()]
    if subject.exact:
        tensors, n = program.tensors(table.arrays), table.n_units
    else:
        tensors, n = subject.tensors, len(next(iter(subject.rows.values())))
    total = {path: np.zeros(tuple(subject.state[path].shape)) for path in names}
    for start in range(0, n, BLOCK):
        rows = {name: value[start : start + BLOCK] for name, value in tensors.items()}
        leaves = {path: subject.state[path].clone().requires_grad_() for path in names}
        state = subject.state | leaves
        with quiet(seed + start), torch.enable_grad():
            if subject.exact:
                value = enumerated_log_marginal(program, state, rows).sum()
            else:
                value = TraceableELBO().per_row(*functional_pair(program, state), rows).sum()
            gradients = torch.autograd.grad(value / n, list(leaves.values()), allow_unused=True)
        for path, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                total[path] = total[path] + _array(gradient)
    return total


def log_prior(subject: Subject) -> float:
    """The log-density of the priors at the parameters."""
    with torch.no_grad():
        return float(torch.func.functional_call(subject.program, subject.state, ("log_prior",)))
