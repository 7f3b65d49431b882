"""What a fitted program says of given rows: class probabilities, log-densities, posterior means.

Discrete latents are summed out exactly. Where a latent is continuous, S draws of the guide stand for it: the
posterior of a discrete latent beside it is then the average over draws of its exact posterior given the draw,
weighted by p(x_d, z_s) / q(z_s | x_d) and normalised by row (self-normalised importance weighting, E3).
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from ppl_gen.data.table import Table
from ppl_gen.declare.spec import Spec
from ppl_gen.errors import DataError, FitError
from ppl_gen.infer import linear_gaussian, linear_gaussian_posterior
from ppl_gen.infer.enumeration import FIRST_ENUMERATED, latent_axes, log_marginal, posterior_marginals
from ppl_gen.infer.importance import importance_log_likelihood
from ppl_gen.program.program import Program
from ppl_gen.results.rows import Rows, in_blocks, seeded

Array = NDArray[Any]


def discrete_latents(program: Program) -> tuple[str, ...]:
    """The discrete latents in model order, partly labelled ones too, whether or not the guide names them."""
    asked = (*program.schema.roles.latent, *program.schema.partial)
    return tuple(name for name, node in program.spec.nodes.items() if name in asked and node.discrete)


def predicted(program: Program, table: Table) -> tuple[str, ...]:
    """What these rows leave open: the discrete latents, and discrete nodes that the rows lack."""
    lacking = [name for name in program.inner if name not in table.arrays]
    asked = {*discrete_latents(program), *lacking}
    return tuple(name for name in program.spec.nodes if name in asked)


def exact_program(program: Program) -> Program:
    """The program itself; where all latents are discrete and a guide names some, one that sums all out."""
    if program.continuous or not program.recognition.draws:
        return program
    plain = Program(Spec(model=program.spec.model, columns=program.spec.columns), program.schema)
    plain = plain.to(dtype=program.dtype, device=next(iter(program.state_dict().values())).device)
    kept = {path: value for path, value in program.state_dict().items() if path in plain.state_dict()}
    plain.load_state_dict(kept)
    return plain


def class_probabilities(program: Program, table: Table, *, draws: int, seed: int) -> dict[str, Array]:
    """P(z = k | x_d) of every discrete latent: name → (N, K), K being k^dim for a vector.

    Exact where all latents are discrete. Otherwise of `draws` draws of the guide: by importance weights, or,
    for a latent that the guide itself names, its probabilities there.
    """
    names = predicted(program, table)
    if not names:
        instead = (
            "its latents are continuous: transform gives their means" if program.continuous else "no latent"
        )
        raise FitError(
            f"these rows leave no discrete node open, and the model has no discrete latent; {instead}"
        )
    program = exact_program(program)
    copies = draws if program.continuous else 1
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    with seeded(program, seed):
        for rows in in_blocks(program, program.tensors(table.arrays), copies):
            found = _by_weighting(program, rows, copies) if program.continuous else _exact(program, rows)
            for name in names:
                known = found[name] if name in found else _known(program, name, rows)
                parts[name].append(known.cpu())
    joined = {name: torch.cat(own, dim=1).T.contiguous().numpy() for name, own in parts.items()}
    for name, probabilities in joined.items():
        lost = np.flatnonzero(~np.isfinite(probabilities).all(1))
        if lost.size:
            raise DataError(
                f"{lost.size} row(s), the first of them row {lost[0]}, have density 0 in floating point under "
                f"every class of '{name}': too far from the data of the fit to be told apart"
            )
    return joined


def labels(program: Program, name: str, probabilities: Array) -> Array:
    """The most probable value of a discrete latent, by its levels where it has any: (N,), or (N, dim)."""
    draw = program.generative.draws[name]
    codes = draw.family.support(draw.sizes).numpy().astype(np.int64)[probabilities.argmax(1)]
    if codes.ndim == 2 and codes.shape[1] == 1:
        codes = codes[:, 0]
    return program.schema.decode(name, codes) if name in program.schema.k else codes


def unwrapped(found: dict[str, Array]) -> Array | dict[str, Array]:
    """The answer itself where one latent has it, else the answers by name."""
    return next(iter(found.values())) if len(found) == 1 else found


def log_densities(program: Program, table: Table, *, draws: int, seed: int) -> tuple[Array, Array]:
    """Each row's log p(x_d) and its standard error: exact, or importance-weighted with the guide (E3)."""
    rows = program.tensors(table.arrays)
    if linear_gaussian.exact(program):
        with torch.no_grad():
            found = linear_gaussian_posterior.log_densities(program, program.state_dict(), rows)
        known = found.cpu().numpy()
        return known, np.zeros_like(known)
    if program.continuous:
        value, error = importance_log_likelihood(program, program.state_dict(), rows, draws=draws, seed=seed)
        return value.cpu().numpy(), error.cpu().numpy()
    program = exact_program(program)
    state = program.state_dict()
    with seeded(program, seed):
        parts = [log_marginal(program, state, block).cpu() for block in in_blocks(program, rows)]
    exact = torch.cat(parts).numpy()
    return exact, np.zeros_like(exact)


def posterior_means(program: Program, table: Table, *, draws: int, seed: int) -> Array:
    """E_q[z | x_d] of the continuous latents side by side, in model order: (N, sum of dims).

    E[z | x_d] itself where they are linear-Gaussian and no guide is written.
    In closed form where one latent is continuous; where there are several, and one may be sampled given
    another, the mean over `draws` draws. Discrete latents of the guide are summed out.
    """
    if not program.continuous:
        instead = (
            "predict_proba gives their probabilities" if discrete_latents(program) else "it has no latent"
        )
        raise FitError(f"the model has no continuous latent to give the mean of; {instead}")
    if linear_gaussian.exact(program):
        rows = program.tensors(table.arrays)
        with torch.no_grad():
            return linear_gaussian_posterior.latent_means(program, program.state_dict(), rows).cpu().numpy()
    copies = 1 if len(program.continuous) == 1 else draws
    with seeded(program, seed):
        blocks = in_blocks(program, program.tensors(table.arrays), copies)
        parts = [_means(program, rows, copies).cpu() for rows in blocks]
    return torch.cat(parts).numpy()


def repeated(rows: Rows, copies: int) -> Rows:
    """Every row `copies` times, draw by draw: (S·N, …)."""
    return {name: value.repeat(copies, *(1,) * (value.ndim - 1)) for name, value in rows.items()}


def guide_trace(program: Program, rows: Rows, *, enumerate_discrete: bool) -> Any:
    """A trace of the guide with its log-probabilities; discrete latents side by side, or drawn."""
    guide = program.guide
    if enumerate_discrete:
        guide = poutine.enum(guide, first_available_dim=FIRST_ENUMERATED)
    trace = poutine.trace(guide).get_trace(rows)
    trace.compute_log_prob()
    return trace


def _exact(program: Program, rows: Rows) -> dict[str, Tensor]:
    _, marginals = posterior_marginals(program, program.state_dict(), rows)
    return _own_axis(program, marginals, rows)


def _known(program: Program, name: str, rows: Rows) -> Tensor:
    """1 at the value that each row has for a node known in all of them: (K, N)."""
    draw = program.generative.draws[name]
    support = draw.family.support(draw.sizes).to(rows[name])
    same = support.unsqueeze(1) == rows[name]
    return (same if same.ndim == 2 else same.all(-1)).to(program.dtype)


def _own_axis(program: Program, marginals: dict[str, Tensor], rows: Rows) -> dict[str, Tensor]:
    """Each site's marginal summed down to the latent itself: (K, N)."""
    axes = latent_axes(program, rows)
    kept = {name: marginals[name].movedim(axis, 0) for name, axis in axes.items()}
    return {name: own.reshape(own.shape[0], -1, own.shape[-1]).sum(1) for name, own in kept.items()}


def _by_weighting(program: Program, rows: Rows, copies: int) -> dict[str, Tensor]:
    wide = repeated(rows, copies)
    found = _named_by_the_guide(program, wide, copies)
    if program.enumerated:
        trace = guide_trace(program, wide, enumerate_discrete=False)
        sites = {name: trace.nodes[name] for name in program.recognition.draws}
        given = wide | {name: site["value"] for name, site in sites.items()}
        log_p, marginals = posterior_marginals(program, program.state_dict(), given)  # (S·N,)
        log_q = reduce(add, [site["log_prob"] for site in sites.values()])
        weights = (log_p - log_q).reshape(copies, -1).softmax(0)  # (S, N)
        for name, own in _own_axis(program, marginals, given).items():
            found[name] = (own.reshape(own.shape[0], copies, -1) * weights).sum(1)
    return found


def _named_by_the_guide(program: Program, wide: Rows, copies: int) -> dict[str, Tensor]:
    """The guide's own probabilities of the discrete latents it names, over its draws: (K, N)."""
    names = [name for name, draw in program.recognition.draws.items() if draw.node.discrete]
    if not names:
        return {}
    trace = guide_trace(program, wide, enumerate_discrete=True)
    joint = _discrete_weights(program, trace)
    found = {}
    for name in names:
        own = joint.movedim(trace.nodes[name]["infer"]["_enumerate_dim"], 0)
        summed = own.reshape(own.shape[0], -1, own.shape[-1]).sum(1)  # (K, S·N)
        found[name] = summed.reshape(own.shape[0], copies, -1).mean(1)
    return found


def _discrete_weights(program: Program, trace: Any) -> Tensor:
    """The guide's probability of all values of its discrete latents, each on its own axis: (…, S·N)."""
    discrete = [name for name, draw in program.recognition.draws.items() if draw.node.discrete]
    log_q: list[Tensor] = [trace.nodes[name]["log_prob"] for name in discrete]
    return reduce(add, log_q).exp()


def _means(program: Program, rows: Rows, copies: int) -> Tensor:
    trace = guide_trace(program, repeated(rows, copies), enumerate_discrete=True)
    named = any(draw.node.discrete for draw in program.recognition.draws.values())
    means = []
    for name in program.continuous:
        mean = trace.nodes[name]["fn"].mean  # (…, S·N, D)
        if named:
            mean = mean * _discrete_weights(program, trace).unsqueeze(-1)
        summed = mean.reshape(-1, *mean.shape[-2:]).sum(0)
        means.append(summed.reshape(copies, -1, summed.shape[-1]).mean(0))
    return torch.cat(means, dim=1)
