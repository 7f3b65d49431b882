"""What one fit says for itself: its criteria, and what a reader should be warned of."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ppl_gen.data.table import Table
from ppl_gen.infer.enumeration import posterior_marginals, site_log_probs
from ppl_gen.infer.status import Status
from ppl_gen.results.fit import DRAWS, Fit
from ppl_gen.results.queries import class_probabilities, discrete_latents, exact_program
from ppl_gen.results.rows import in_blocks, seeded

FEW = 0.1  # share of the finished restarts that must reach the best mode; of several, two at the least


def posterior_entropy(fit: Fit, table: Table) -> float:
    """Σ_d w_d H(p(z | x_d)) in nats, z being all discrete latents together; NaN where there is none to classify by.

    With r the posterior, H = log p(x) − Σ_z r(z) log p(x, z); the sum falls apart over the sites, so that no
    joint table of several latents is needed.
    """
    if fit.program.continuous:
        return _estimated_entropy(fit, table)
    program = exact_program(fit.program)
    state, total, done = program.state_dict(), 0.0, 0
    rows = program.tensors(table.arrays, holes=table.holes)
    weights = np.ones(table.n_units) if table.weights is None else table.weights
    with seeded(program, fit.seed):
        for block in in_blocks(program, rows):
            log_p, marginals = posterior_marginals(program, state, block)
            for name, log_prob in site_log_probs(program, state, block).items():
                own = torch.where(marginals[name] > 0, marginals[name] * log_prob, 0.0)  # 0·log 0 := 0
                log_p = log_p - own.reshape(-1, own.shape[-1]).sum(0)
            total += float(log_p.cpu().numpy() @ weights[done : done + len(log_p)])
            done += len(log_p)
    return max(total, 0.0)


def _estimated_entropy(fit: Fit, table: Table) -> float:
    """The same beside continuous latents, by draws of the guide; of one discrete latent."""
    names = discrete_latents(fit.program)
    if len(names) != 1:
        return math.nan
    r = class_probabilities(fit.program, table, draws=DRAWS, seed=fit.seed)[names[0]]  # (N, K)
    rows = -np.where(r > 0, r * np.log(np.where(r > 0, r, 1.0)), 0.0).sum(1)
    return float(rows.sum() if table.weights is None else rows @ table.weights)


def icl(fit: Fit, table: Table) -> float:
    """BIC + 2 Σ_d H(p(z | x_d)); the smaller, the better.

    The integrated completed likelihood of Biernacki, Celeux & Govaert (2000), in the BIC's sign: it asks for
    classes that can be told apart, where BIC asks for a density that fits.
    """
    return fit.bic + 2 * posterior_entropy(fit, table)


def summary(fit: Fit) -> dict[str, Any]:
    """A fit's entries of the table: likelihood, criteria, status, hits; no numbers where it is no answer."""
    best = fit.modes[0].hits if fit.modes else 0
    ended = {"status": fit.status.name.lower().replace("_", " "), "hits": best, "restarts": fit.run.finished}
    if not fit.status.usable or fit.data is None:
        return ended
    numbers = {
        "log_likelihood": fit.log_likelihood,
        "parameters": fit.n_parameters,
        "aic": fit.aic,
        "bic": fit.bic,
        "icl": icl(fit, fit.data),
    }
    return numbers | ended


def doubts(fit: Fit) -> list[str]:
    """What makes a fit a doubtful witness, each in a few words."""
    if not fit.status.usable:
        return [fit.status.value]
    found = []
    edges = [line.text for line in fit.certificate.lines if line.name == "boundaries" and line.value > 0]
    plain = (Status.CONVERGED, Status.EPOCHS_DONE, *((Status.BOUNDARY,) if edges else ()))
    if fit.status not in plain:
        found.append(fit.status.value)
    if fit.modes and fit.run.finished > 1:
        hits, finished = fit.modes[0].hits, fit.run.finished
        if hits < max(2, FEW * finished):
            found.append(
                f"{hits} of {finished} restarts reached the best mode, so there may be a better one: "
                "ask for more restarts"
            )
    if fit.run.collapsed:
        found.append(f"{fit.run.collapsed} of {fit.run.restarts} restarts collapsed")
    if fit.certificate.failed:
        found.append(f"the certificate failed: {', '.join(fit.certificate.failed)}")
    return found + [f"boundary: {text}" for text in edges]
