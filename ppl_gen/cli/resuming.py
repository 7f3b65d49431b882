"""resume: go on with a run that was cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppl_gen.cli.commands import Replace, Trust, Weights, app, leave


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `fit --checkpoint` named.")],
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="The same rows; left out, read from where they were."),
    ] = None,
    spec: Annotated[
        str | None, typer.Option(metavar="SPEC", help="Refuse if this is not the declaration of the run.")
    ] = None,
    weights: Weights = None,
    out: Annotated[Path | None, typer.Option(help="The folder to save the fit in.")] = None,
    replace: Replace = False,
    trust: Trust = False,
) -> None:
    """Go on with an SVI run from its newest checkpoint, to the same bits as if it had not been cut short."""
    from ppl_gen.cli.outcome import outcome_text
    from ppl_gen.results.storage import check_writable
    from ppl_gen.resuming import resume as go_on

    if out is not None:
        check_writable(out, replace=replace)
    result = go_on(folder, data, spec=spec, weights=weights, trust=trust)
    if out is not None:
        result.save(out, replace=replace)
    typer.echo(outcome_text(result))
    typer.echo("\nnot saved; --out DIR saves a fit" if out is None else f"\nsaved in {out}")
    leave(result.status)
