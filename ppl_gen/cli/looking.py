"""The commands that look at a declaration or a saved fit: `show`, `bootstrap`, `evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ppl_gen.cli.commands import DataArgument, FitArgument, Replace, Seed, Trust, Weights, app
from ppl_gen.errors import FitError

Level = Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")]


class Replicates(StrEnum):
    """What a model is refitted to."""

    weighted = "weighted"
    resampled = "resampled"
    parametric = "parametric"


@app.command()
def show(
    what: Annotated[
        str, typer.Argument(metavar="FIT_OR_SPEC", help="A fit's folder, a YAML file, or a shipped model.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="The rows of the fit, which its folder has not: standard errors need them."),
    ] = None,
    weights: Weights = None,
    level: Level = 0.95,
    trust: Trust = False,
) -> None:
    """Print a saved fit, or a declaration: its graph, factorisation, guide and route."""
    from ppl_gen.cli.printing import spec_text
    from ppl_gen.declare.files import read_spec, shipped_models

    folder = Path(what)
    if (folder / "fit.json").is_file() or (folder.is_dir() and what not in shipped_models()):
        from ppl_gen.cli.outcome import fit_text, own_rows
        from ppl_gen.results.storage import load

        fit = load(folder, trust=trust)
        typer.echo(fit_text(fit, own_rows(fit, data, weights), level=level))
    elif data is not None:
        raise FitError(f"--data is for the standard errors of a saved fit, and {what} is a declaration")
    else:
        typer.echo(spec_text(read_spec(what, trust=trust)))


@app.command()
def bootstrap(
    fit: FitArgument,
    data: DataArgument,
    draws: Annotated[int, typer.Option(min=2, help="How many refits.")] = 200,
    kind: Annotated[
        Replicates,
        typer.Option(
            help="To rows under random weights, to rows drawn with replacement, or to rows drawn from the model."
        ),
    ] = Replicates.weighted,
    weights: Weights = None,
    level: Level = 0.95,
    seed: Seed = 0,
    trust: Trust = False,
) -> None:
    """Refit a saved fit to replicates of its rows; print standard errors and intervals."""
    from ppl_gen.cli.outcome import bootstrap_text, own_rows
    from ppl_gen.resampling import bootstrap as refitted
    from ppl_gen.results.storage import load

    found = load(fit, trust=trust)
    rows = own_rows(found, data, weights)
    typer.echo(bootstrap_text(refitted(found, draws, kind=kind.value, data=rows, seed=seed), level=level))


@app.command()
def evaluate(
    fit: FitArgument,
    data: DataArgument,
    draws: Annotated[
        int, typer.Option(min=1, help="Of the guide for each row, where a latent is continuous.")
    ] = 5_000,
    refitted_rows: Annotated[
        int, typer.Option(min=0, help="Rows that the guide is fitted to one by one; 0: no amortisation gap.")
    ] = 100,
    active: Annotated[
        float, typer.Option(min=0.0, help="Variance of its posterior mean from which a dimension is active.")
    ] = 0.01,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    seed: Seed = 0,
    replace: Replace = False,
    trust: Trust = False,
) -> None:
    """Hold a saved fit against rows: log p(x), the ELBO and its parts, which latents are used."""
    import json

    from ppl_gen.cli.tabular import check_target, write_texts
    from ppl_gen.evaluation import evaluate as evaluated
    from ppl_gen.results.storage import load

    check_target(out, replace=replace)
    found = evaluated(
        load(fit, trust=trust),
        data,
        draws=draws,
        refitted_rows=refitted_rows,
        active=active,
        weights=weights,
        seed=seed,
    )
    typer.echo(found.summary())
    if out is not None:
        write_texts([json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"], out)
