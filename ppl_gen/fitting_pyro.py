"""fit_pyro: from a Pyro model and guide of one's own and data to a PyroFit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from ppl_gen.certify.pyro_pair import certify_pair
from ppl_gen.errors import FitError
from ppl_gen.infer.algorithms import SVI, described
from ppl_gen.infer.callbacks import Callback, check_callbacks
from ppl_gen.infer.noise import in_turn
from ppl_gen.infer.progress import Progress, progress_bar
from ppl_gen.infer.pyro_bounds import bound_and_likelihood
from ppl_gen.infer.pyro_checks import found_pair
from ppl_gen.infer.pyro_rows import own_rows
from ppl_gen.infer.svi import train
from ppl_gen.precautions import check_arguments, warn
from ppl_gen.results.pyro_fit import PyroFit


@in_turn
def fit_pyro(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    data: Any,
    algorithm: SVI | None = None,
    *,
    weights: Any = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Any = None,
) -> PyroFit:
    """Fit a Pyro model and guide of one's own by SVI: the ELBO of F2 and its relatives, every option of `SVI`.

    Both functions take one minibatch, a dictionary of tensors of n rows, and declare one plate over them,
    `pyro.plate("rows", n, dim=-1)`; minibatches and their scale are the library's. Trained is what `pyro.param` and
    `pyro.module` name, what PyroModules hold, and parameters of modules that are called without either, all from
    the values they have; frozen ones, buffers and closed-over tensors count as they are when the fit begins.
    Discrete sites are enumerated where they are marked with infer={"enumerate": "parallel"}.

    Args:
        model: rows → anything: the joint law of latents and rows.
        guide: rows → anything: draws every latent that is not enumerated in the model.
        data: one array, which becomes "x", or a dictionary of arrays or tensors of N rows each.
        algorithm: default SVI().
        weights: how often each row counts, N numbers from 0; None: once.
        seed: of parameters that begin at random, of minibatches and draws.
        dtype: what real numbers of the data become; parameters keep their own.
        device: where the data go; modules are to be there.
        progress: called after each epoch with epochs done, epochs in all, and the epoch's ELBO.
        callbacks: objects that are told of the run; see `Callback`.
        checkpoint: not offered: a checkpoint describes what goes on from it, and a function cannot be written down.

    Returns:
        The PyroFit. The modules hold the fitted weights; Pyro's store is as it was (`PyroFit.to_param_store`).

    Raises:
        DataError: numbers of rows differ, or a cell is not finite.
        FitError: the functions are not what SVI takes; the message says where, and what could be done.

    Example:
        >>> import pyro, torch
        >>> from pyro import distributions as dist
        >>> def model(rows):
        ...     loc = pyro.param("loc", torch.tensor(0.0))
        ...     with pyro.plate("rows", len(rows["x"]), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(loc, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=rows["x"])
        >>> def guide(rows):
        ...     slope = pyro.param("slope", torch.tensor(0.0))
        ...     with pyro.plate("rows", len(rows["x"]), dim=-1):
        ...         pyro.sample("z", dist.Normal(slope * rows["x"], 0.7))
        >>> found = fit_pyro(model, guide, torch.tensor([0.5, 1.5, 2.5]), SVI(epochs=3, learning_rate=0.1))
        >>> sorted(found.parameters), found.certificate.ok
        (['loc', 'slope'], True)

    """
    algorithm = SVI() if algorithm is None else algorithm
    if not isinstance(algorithm, SVI):
        raise FitError(f"a pair of functions is fitted by SVI(…), not {algorithm!r}")
    if checkpoint is not None:
        raise FitError(
            "checkpoint= is not offered here: a checkpoint describes what a later process goes on with, and a "
            "function cannot be written down. Declare the model as a Spec and use fit, or train in parts: modules "
            "keep their weights from one fit_pyro to the next"
        )
    for name, own in (("model", model), ("guide", guide)):
        if not callable(own):
            raise FitError(f"{name} must be a function of a dictionary of tensors, not {own!r}")
    check_arguments(seed, dtype, device)
    check_callbacks(callbacks)
    rows = own_rows(data, weights=weights, dtype=dtype, device=device)
    first = {name: column[: algorithm.batch_size] for name, column in rows.tensors.items()}
    pair = found_pair(model, guide, first, algorithm, int(seed))
    with progress_bar("ELBO") if progress is None else nullcontext(progress) as report:
        run = train(pair, rows, rows.weighted, algorithm, seed=int(seed), audience=(report, callbacks))
    state = run.state
    pair.load(state)
    if not run.status.usable:
        warn(run.status.value)
    elbo, log_likelihood = bound_and_likelihood(pair, state, rows, int(seed))
    return PyroFit(
        pair=pair,
        run=replace(run, notes=("SVI: as asked", *run.notes)),
        algorithm=described(algorithm),
        seed=int(seed),
        n_units=int(rows.total) if rows.total.is_integer() else rows.total,
        log_likelihood=log_likelihood,
        elbo=elbo,
        certificate=certify_pair(pair, state, rows.tensors, int(seed)),
        dtype=dtype,
    )
