"""An Evaluation as text, and as plain values for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ppl_gen.results.evaluation import Estimate, Evaluation

SHOWN = 32  # dimensions in the table, those with the largest KL first


def evaluation_text(found: Evaluation) -> str:
    """Figures in one table, what is to be said of them, and a table of the latents."""
    parts = ["\n".join(_figures(found)), "\n".join(_notes(found)), "\n".join(_latents(found))]
    return "\n\n".join(part for part in parts if part)


def evaluation_dict(found: Evaluation) -> dict[str, Any]:
    """`Evaluation.to_dict`."""
    effective, k = found.per_row["effective_draws"], found.per_row["pareto_k"]
    drawn = bool(found.draws)
    amortisation = found.amortisation
    whole = {
        "rows": len(found),
        "draws": found.draws,
        "seed": found.seed,
        "exact": found.exact,
        **{name: asdict(getattr(found, name)) for name in _NAMES},
        "bias": found.bias,
        "effective_draws": _quantiles(effective) if drawn else None,
        "pareto_k": {**_quantiles(k), "unreliable_rows": found.unreliable} if drawn else None,
        "amortisation": None
        if amortisation is None
        else {"gap": asdict(amortisation.gap), "rows": len(amortisation.rows), "steps": amortisation.steps},
        "latents": found.latents.to_dict("records"),
        "collapsed": list(found.collapsed),
        "verdicts": list(found.verdicts),
    }
    plain: dict[str, Any] = _plain(whole)
    return plain


_NAMES = ("log_likelihood", "elbo", "reconstruction", "kl", "gap")


def _quantiles(values: Any) -> dict[str, float]:
    return {"least": float(values.min()), "median": float(np.median(values)), "most": float(values.max())}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _figures(found: Evaluation) -> list[str]:
    drawn = f", {found.draws} draws of the guide for each" if found.draws else ""
    counted = "" if found.weights is None else f", which count {found.weights.sum():g}"
    head = f"{len(found)} rows{counted}{drawn}"
    lines = [f"{head:<40}  {'nats a row':>12}  {'± rows':>9}  {'± draws':>9}"]
    own = f"log p(x), {'exact' if found.exact else 'importance-weighted'}"
    kl_of = "  KL(q(z | x) ‖ p(z))"
    rows: list[tuple[str, Estimate]] = [
        (own, found.log_likelihood),
        ("ELBO", found.elbo),
        ("  reconstruction, E_q[log p(x | z)]", found.reconstruction),
        (kl_of, found.kl),
        ("gap, log p(x) − ELBO", found.gap),
    ]
    if found.amortisation is not None:
        told = f"  amortisation gap, on {len(found.amortisation.rows)} rows"
        rows.append((told, found.amortisation.gap))
    for name, figure in rows:
        noise = f"{figure.over_draws:9.4f}" if figure.over_draws else ""
        lines.append(f"{name:<40}  {figure.value:12.4f}  {figure.over_rows:9.4f}  {noise}".rstrip())
    return lines


def _notes(found: Evaluation) -> list[str]:
    """Exactness, weights, verdicts."""
    notes = []
    if found.exact:
        notes.append(f"exact            {found.exact}")
    if found.draws:
        effective, k = found.per_row["effective_draws"], found.per_row["pareto_k"]
        notes.append(
            f"effective draws  median {np.median(effective):.0f} of {found.draws}, least {effective.min():.1f}"
        )
        if np.isfinite(k).any():
            notes.append(f"Pareto k̂         median {np.nanmedian(k):.2f}, largest {np.nanmax(k):.2f}")
        if not found.exact and found.log_likelihood.over_draws:
            notes.append(f"bias             log p(x) is too low by about {found.bias:.2g} nats a row (E3)")
        if found.unreliable and not found.exact:
            notes.append(
                f"warning          k̂ is above 0.7 in {found.unreliable} of {len(found)} rows: their log p(x) is "
                "too low by more than its error says; draw more, or fit a more flexible guide"
            )
    notes += [f"latents          {verdict}" for verdict in found.verdicts[:1]]
    return notes + [f"                 {verdict}" for verdict in found.verdicts[1:]]


def _latents(found: Evaluation) -> list[str]:
    frame = found.latents
    if not len(frame):
        return []
    shown = frame.sort_values("kl", ascending=False, kind="stable").head(SHOWN).sort_index()
    wide = max(8, *(len(name) for name in shown["latent"]))
    lines = [f"{'latent':<{wide}}  {'KL':>9}  {'active':>6}  {'var of mean':>11}  {'posterior var':>13}"]
    several = set(frame["latent"][frame["latent"].duplicated()])
    for row in shown.to_dict("records"):
        name = f"{row['latent']}[{row['dimension']}]" if row["latent"] in several else row["latent"]
        cells = [f"{name:<{wide}}", _number(row["kl"], 9), f"{'yes' if row['active'] else 'no':>6}"]
        cells += [_number(row["mean_variance"], 11), _number(row["posterior_variance"], 13)]
        lines.append("  ".join(cells).rstrip())
    if len(frame) > len(shown):
        lines.append(f"and {len(frame) - len(shown)} more dimensions with a smaller KL")
    return lines


def _number(value: float, width: int) -> str:
    return " " * width if math.isnan(value) else f"{value:{width}.4f}"
