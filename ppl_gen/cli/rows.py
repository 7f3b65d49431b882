"""The commands that write rows: `predict`, `impute`, `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppl_gen.cli.commands import DataArgument, FitArgument, Replace, Seed, Trust, app

OutFile = Annotated[Path | None, typer.Option(help="The CSV file; left out, the standard output.")]


@app.command()
def predict(
    fit: FitArgument,
    new: DataArgument,
    out: OutFile = None,
    draws: Annotated[
        int, typer.Option(min=1, help="Of the guide for each row, where a latent is continuous.")
    ] = 100,
    seed: Seed = 0,
    replace: Replace = False,
    trust: Trust = False,
) -> None:
    """Write each row's class, class probabilities, latent means and log p(x)."""
    from ppl_gen.cli.tabular import check_target, predictions_by_part, write_csv
    from ppl_gen.results.storage import load

    check_target(out, replace=replace)
    write_csv(predictions_by_part(load(fit, trust=trust), new, draws=draws, seed=seed), out)


@app.command()
def impute(
    fit: FitArgument,
    data: DataArgument,
    out: OutFile = None,
    draws: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Completed copies, drawn at random, under a column `draw`; left out, one copy with conditional "
            "means and the most probable categories.",
        ),
    ] = None,
    seed: Seed = 0,
    replace: Replace = False,
    trust: Trust = False,
) -> None:
    """Write the data with their missing cells filled in, all their columns as they stand."""
    from ppl_gen.cli.completing import completed_rows
    from ppl_gen.cli.tabular import check_target, write_csv
    from ppl_gen.results.storage import load

    check_target(out, replace=replace)
    write_csv(completed_rows(load(fit, trust=trust), data, draws=draws, seed=seed), out)


@app.command()
def sample(
    fit: FitArgument,
    n: Annotated[int, typer.Option("-n", min=1, help="Rows to draw.")],
    out: OutFile = None,
    seed: Seed = 0,
    given: Annotated[Path | None, typer.Option(help="A CSV file with the Inputs of each row.")] = None,
    latents: Annotated[bool, typer.Option("--latents", help="Write the latents too.")] = False,
    replace: Replace = False,
    trust: Trust = False,
) -> None:
    """Draw rows from a saved fit."""
    from ppl_gen.cli.tabular import check_target, drawn_rows, write_csv
    from ppl_gen.results.storage import load

    check_target(out, replace=replace)
    write_csv([drawn_rows(load(fit, trust=trust), n, seed=seed, given=given, latents=latents)], out)
