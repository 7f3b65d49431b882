"""evaluate: what a fit's log-likelihood is on some rows, how good its guide is there, which latents it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress as Bar
from torch import Tensor

from ppl_gen.data.stream import StreamedTable
from ppl_gen.data.table import Table
from ppl_gen.errors import FitError
from ppl_gen.infer import linear_gaussian, linear_gaussian_posterior
from ppl_gen.infer.amortisation import Refitted, refitted
from ppl_gen.infer.decomposition import Parts, parts_of
from ppl_gen.infer.importance import Weighted, blocks, cells_of_a_draw
from ppl_gen.infer.latent_moments import Latent
from ppl_gen.infer.linear_gaussian_usage import exact_latents
from ppl_gen.program.program import Program
from ppl_gen.results.evaluation import ACTIVE, Amortisation, Array, Evaluation, LatentUse
from ppl_gen.results.fit import Fit
from ppl_gen.results.rows import at_least_one, read_in_parts, seeded

STEPS = 400  # of Adam, on the parameters of one row's posterior
COMPARED = 1_000  # draws on which it is compared with the encoder's
AFTER = 1 << 30  # between the seed of the draws and that of the refits
AT_ONCE = 16_384  # rows

Rows = Mapping[str, Tensor]
Told = Callable[[float], None]  # the share of the work that is done


def evaluate(
    fit: Fit,
    data: Any = None,
    *,
    draws: int = 5_000,
    seed: int = 0,
    weights: Any = None,
    refitted_rows: int = 100,
    active: float = ACTIVE,
) -> Evaluation:
    """Hold a fit against rows: log p(x), ELBO and its parts, importance weights, use of the latents.

    Log p(x_d) ≈ log (1/S) Σ_s p(x_d, z_s)/q(z_s | x_d) with draws of the guide (E3), discrete latents summed out.
    It is exact where all latents are discrete, and (E1) where the model is linear-Gaussian; after EM the posterior
    is exact as well, and the gap of F2 is 0. All work is done in blocks of rows and draws, a bar on a terminal.

    Args:
        fit: any fit.
        data: N rows, as `fit` takes them; default those it was fitted on, which a loaded Fit has not.
        draws: S, of the guide for each row.
        seed: of the draws.
        weights: how often each row counts: N numbers, or a column's name. Default: once.
        refitted_rows: how many rows, drawn at random, the guide's parameters are fitted to one by one, for the
            amortisation gap: 400 steps of Adam from the encoder's own; of rows read in parts, among the first part.
            0: leave it out.
        active: the variance over rows of its posterior mean above which a dimension counts as active.

    Raises:
        DataError: the rows do not fit the model's columns and levels.
        FitError: there are no rows, or an option is out of its range.

    Reference: Burda, Grosse & Salakhutdinov (2016) on importance weights and active units; Cremer, Li & Duvenaud
    (2018) on the amortisation gap; Vehtari et al. (2024) on k̂; Lucas et al. (2019) on collapse.

    Example:
        >>> from ppl_gen import SVI, evaluate, fit, vae
        >>> x = np.random.default_rng(0).normal(size=(50, 1)) * [2.0, -1.0, 0.5]
        >>> found = evaluate(fit(vae(1, (4,)), {"x": x}, SVI(epochs=2)), draws=100, refitted_rows=5)
        >>> found.elbo.value < found.log_likelihood.value, found.latents.columns[:3].tolist()
        (True, ['latent', 'dimension', 'kl'])

    """
    if not isinstance(fit, Fit):
        raise FitError(f"evaluate takes a Fit, as fit(…) and load(…) give it, not {fit!r}")
    draws = at_least_one(draws, "draws")
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise FitError(f"seed must be a whole number from 0, not {seed!r}")
    seed = int(seed)
    if not isinstance(active, int | float) or isinstance(active, bool) or not active >= 0:
        raise FitError(f"active must be a variance, a number from 0, not {active!r}")
    count = at_least_one(refitted_rows, "refitted_rows") if refitted_rows else 0
    program = fit.program
    closed = linear_gaussian.exact(program) and fit.algorithm.get("name") == "EM"
    sampled = bool(program.continuous) and not closed
    parts: list[Parts] = []
    counts: list[Array | None] = []
    refits = None
    with _bar() as stage:
        for i, table in enumerate(_tables(fit, data, weights)):
            told = stage("importance weights" if sampled else "posterior")
            if closed:
                parts += _in_closed_form(program, table, told)
            else:
                parts += _drawn(program, table, draws if sampled else 1, seed + i, told)
            counts.append(table.weights)
            if i == 0 and count and not closed and program.recognition.draws:
                refits = _amortisation(program, table, count, seed, stage("refitting the guide row by row"))
    return Evaluation(
        draws if sampled else 0,
        seed,
        _reason(program, closed=closed),
        _per_row(parts),
        _usage(parts),
        refits,
        None if counts[0] is None else np.concatenate([own for own in counts if own is not None]),
        float(active),
        bare=closed or not program.recognition.draws,
    )


def _tables(fit: Fit, data: Any, weights: Any) -> Iterator[Table]:
    """The rows, read against the schema of the fit; in parts where they are files to be streamed."""
    if data is not None:
        yield from read_in_parts(fit.program, data, weights)
        return
    if fit.data is None:
        raise FitError("a Fit that was loaded has not kept its rows: give evaluate the data")
    if weights is not None:
        raise FitError("weights go with data; the rows of the fit have the weights they were fitted with")
    if not isinstance(fit.data, StreamedTable):
        yield fit.data
        return
    for block in fit.data.blocks(AT_ONCE):
        yield Table(fit.data.schema, block.arrays, block.n_rows, (), fit.data.holes, block.weights)


@contextmanager
def _bar() -> Iterator[Callable[[str], Told]]:
    """Something to tell the progress of each stage to; drawn on a terminal."""
    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:

        def stage(name: str) -> Told:
            task = bar.add_task(name, total=1.0)
            return lambda share: bar.update(task, completed=share)

        yield stage


def _block(rows: Rows, start: int, stop: int) -> Rows:
    return {name: value[start:stop] for name, value in rows.items()}


def _drawn(program: Program, table: Table, draws: int, seed: int, told: Told) -> Iterator[Parts]:
    """Rows block by block: by draws of the guide, or without any where all latents are discrete."""
    rows, state = program.tensors(table.arrays, table.holes), dict(program.state_dict())
    known = linear_gaussian.exact(program)
    with seeded(program, seed):
        for start, stop, shares in blocks(table.n_units, draws, cells_of_a_draw(program, state, rows)):
            own = _block(rows, start, stop)
            parts = parts_of(program, state, own, shares)
            log_p = linear_gaussian_posterior.log_densities(program, state, own) if known else None
            if not program.continuous:  # one draw of nothing
                log_p = parts.evidence.log_mean
            if log_p is not None:
                parts.evidence = replace(parts.evidence, log_mean=log_p, error=torch.zeros_like(log_p))
            yield parts
            told(stop / table.n_units)


def _in_closed_form(program: Program, table: Table, told: Told) -> Iterator[Parts]:
    """Rows block by block under the exact posterior of a linear-Gaussian model, which bounds log p(x) by itself."""
    rows, state = program.tensors(table.arrays, table.holes), dict(program.state_dict())
    for start in range(0, table.n_units, linear_gaussian_posterior.ROWS):
        stop = min(start + linear_gaussian_posterior.ROWS, table.n_units)
        with torch.no_grad():
            log_p, latents = exact_latents(program, state, _block(rows, start, stop))
        nothing = torch.full_like(log_p, torch.nan)
        evidence = Weighted(log_p, torch.zeros_like(log_p), nothing, nothing)
        yield Parts(evidence, log_p, torch.zeros_like(log_p), latents)
        told(stop / table.n_units)


def _amortisation(program: Program, table: Table, count: int, seed: int, told: Told) -> Amortisation:
    """The guide fitted to some rows, drawn at random, one by one."""
    generator = np.random.default_rng(seed)
    picked = np.sort(generator.permutation(table.n_units)[:count])
    rows = program.tensors({name: array[picked] for name, array in table.arrays.items()}, table.holes)
    found: Refitted = refitted(program, rows, steps=STEPS, draws=COMPARED, seed=seed + AFTER, told=told)
    return Amortisation(picked, _array(found.encoder), _array(found.fitted), _array(found.error), STEPS)


def _reason(program: Program, *, closed: bool) -> str:
    """Why log p(x) is exact, or an empty text."""
    if closed:
        return "the model is linear-Gaussian: log p(x) and the posterior are known in closed form (E1)"
    if linear_gaussian.exact(program):
        return (
            "the model is linear-Gaussian: log p(x) is known in closed form (E1), the draws are the guide's"
        )
    if not program.continuous:
        return "all latents are discrete, and summed out (E2)" if program.enumerated else "nothing is latent"
    return ""


def _per_row(parts: Sequence[Parts]) -> dict[str, Array]:
    """What `Evaluation.per_row` holds."""
    kl = [torch.stack([latent.kl for latent in own.latents.values()]).sum(0) for own in parts if own.latents]
    bound = _joined([own.elbo for own in parts])
    cost = _joined(kl) if kl else np.zeros_like(bound)
    return {
        "log_likelihood": _joined([own.evidence.log_mean for own in parts]),
        "log_likelihood_error": _joined([own.evidence.error for own in parts]),
        "elbo": bound,
        "elbo_error": _joined([own.elbo_error for own in parts]),
        "reconstruction": bound + cost,
        "kl": cost,
        "effective_draws": _joined([own.evidence.effective for own in parts]),
        "pareto_k": _joined([own.evidence.pareto_k for own in parts]),
    }


def _usage(parts: Sequence[Parts]) -> tuple[LatentUse, ...]:
    """Of each latent, its rows joined."""

    def joined(name: str, what: str) -> Array | None:
        each = [getattr(own.latents[name], what) for own in parts]
        return None if each[0] is None else _joined(each)

    found = []
    for name, latent in parts[0].latents.items():
        own: dict[str, Any] = {what: joined(name, what) for what in Latent.__dataclass_fields__}
        found.append(LatentUse(name, **own) if latent.mean is not None else LatentUse(name, own["kl"]))
    return tuple(found)


def _joined(parts: Sequence[Tensor]) -> Array:
    return np.concatenate([_array(own) for own in parts])


def _array(tensor: Tensor) -> Array:
    return tensor.detach().double().cpu().numpy()
