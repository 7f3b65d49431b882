"""`ppl-gen select`: a grid of declarations on one set of rows, and the one to take."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ppl_gen.cli.commands import (
    NUMERICAL_FAILURE,
    STOPPED,
    DataArgument,
    Replace,
    Seed,
    Setting,
    SpecArgument,
    Trust,
    app,
)
from ppl_gen.errors import FitError, SpecError

PICTURES = (".png", ".svg", ".pdf")


@app.command()
def select(
    spec: SpecArgument,
    data: DataArgument,
    grid: Annotated[
        list[str],
        typer.Option(
            metavar="NODE.OPTION=VALUES",
            help='What to try: "z.k=1..8", "x.cov=By(z)|Free()"; several: every combination.',
        ),
    ],
    settings: Setting = [],  # noqa: B006  typer copies it
    criterion: Annotated[str, typer.Option(help="aic, bic, icl, cv or blrt.")] = "bic",
    algorithm: Annotated[
        str | None, typer.Option(help='As "EM(restarts=50)"; left out, the route decides.')
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    draws: Annotated[int, typer.Option(min=1, help="Samples of each bootstrap test.")] = 99,
    weights: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="How often each row counts; not read as data.")
    ] = None,
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; left out, as many as repay their start.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A CSV file for the table.")] = None,
    plot: Annotated[Path | None, typer.Option(help="A file for a picture: .png, .svg or .pdf.")] = None,
    save: Annotated[Path | None, typer.Option(help="The folder to save the best fit in.")] = None,
    replace: Replace = False,
    trust: Trust = False,
) -> None:
    """Fit a grid of models to data, compare them in one table, name the best."""
    from ppl_gen.cli import options
    from ppl_gen.cli.tabular import check_target, write_csv
    from ppl_gen.results.storage import check_writable
    from ppl_gen.selecting.choosing import select as select_model

    values = dict(grid_values(text) for text in grid)
    declaration, chosen = options.declared(spec, settings, trust=trust), options.algorithm(algorithm)
    for target in (out, plot):
        check_target(target, replace=replace)
    if plot is not None and plot.suffix not in PICTURES:
        raise FitError(f"--plot {plot}: a picture is one of {', '.join(PICTURES)}")
    if save is not None:
        check_writable(save, replace=replace)
    with _progress_told():
        found = select_model(
            declaration,
            data,
            values,
            criterion=criterion,
            algorithm=chosen,
            folds=folds,
            draws=draws,
            seed=seed,
            weights=weights,
            workers=workers,
        )
    typer.echo(str(found))
    if out is not None:
        write_csv([{str(name): found.table[name].to_numpy() for name in found.table}], out)
    if plot is not None:
        found.plot(plot)
    if save is not None and found.chosen is not None:
        found.best.save(save, replace=replace)
        typer.echo(f"\nthe best fit is saved in {save}")
    elif save is None:
        typer.echo("\nnot saved; --save DIR saves the best fit")
    if any(note.startswith("interrupted") for note in found.notes):
        raise typer.Exit(STOPPED)
    if found.chosen is None:
        raise typer.Exit(NUMERICAL_FAILURE)


def grid_values(text: str) -> tuple[str, Sequence[Any]]:
    """One --grid: its path and its values, apart by "|", or a range of whole numbers.

    Raises:
        SpecError: it is neither.

    Example:
        >>> grid_values("z.k=1..4"), grid_values("x.cov=By(z) | Free()")
        (('z.k', range(1, 5)), ('x.cov', ['By(z)', 'Free()']))

    """
    path, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not path or not values:
        raise SpecError(
            f'--grid {text}: write NODE.OPTION=VALUES, as --grid z.k=1..8 or "x.cov=By(z)|Free()"'
        )
    if span := re.fullmatch(r"(\d+)\s*\.\.\s*(\d+)", values):
        first, last = map(int, span.groups())
        if first > last:
            raise SpecError(f"--grid {text}: the range ends before it begins")
        return path, range(first, last + 1)
    return path, [int(value) if value.isdecimal() else value for value in map(str.strip, values.split("|"))]


@contextmanager
def _progress_told() -> Iterator[None]:
    """Say on stderr how much is left to do, and where it is done."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            typer.echo(record.getMessage(), err=True)

    log, told = logging.getLogger("ppl_gen.selecting"), Told(logging.INFO)
    level = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(told)
        log.setLevel(level)
