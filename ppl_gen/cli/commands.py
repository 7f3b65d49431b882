"""The command line: what its commands share, and the two that take a declaration; each is one library call.

Exit codes: 0; 2 for a mistake of the user's, told in one line; 3 where a fit is no answer (collapsed, diverged)
or a check fails; 130 after Ctrl-C.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Never

import typer
from typer.core import TyperGroup

from ppl_gen.cli.printing import complain, plain_warnings
from ppl_gen.errors import DataError, FitError, SpecError

# torch and pyro take seconds to import: whatever needs them is imported in the commands, so that --help is quick.
if TYPE_CHECKING:
    from ppl_gen.infer.status import Status

USER_ERROR, NUMERICAL_FAILURE, STOPPED = 2, 3, 130


class Commands(TyperGroup):
    """The commands together: a user's mistake ends any of them with one line and no traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with plain_warnings():
                return super().invoke(ctx)
        except (SpecError, DataError, FitError) as error:
            complain(error)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            complain("interrupted; nothing was saved")
            raise typer.Exit(STOPPED) from None


app = typer.Typer(
    cls=Commands,
    help="Declare a latent-variable model, fit it by EM or SVI, certify the fit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Precision(StrEnum):
    """Of the parameters."""

    float32 = "float32"
    float64 = "float64"


SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file, or a shipped model's name.")]
DataArgument = Annotated[
    Path,
    typer.Argument(metavar="DATA", help="A CSV, Parquet or .npy file, or a folder of them; rows are units."),
]
FitArgument = Annotated[Path, typer.Argument(metavar="FIT", help="The folder of a saved fit.")]
Setting = Annotated[
    list[str], typer.Option("--set", metavar="NODE.OPTION=VALUE", help="Change the declaration, as z.k=2.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of starts, minibatches and draws.")]
Replace = Annotated[bool, typer.Option("--replace", help="Write over what --out names.")]
Trust = Annotated[bool, typer.Option("--trust", help="Import the code that a Net of the declaration names.")]
Weights = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="How often each row counts; not read as data.")
]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"ppl-gen {installed('ppl_gen')}")
        raise typer.Exit


@app.command()
def fit(
    spec: SpecArgument,
    data: DataArgument,
    settings: Setting = [],  # noqa: B006  typer copies it
    out: Annotated[Path | None, typer.Option(help="The folder to save the fit in.")] = None,
    seed: Seed = 0,
    algorithm: Annotated[
        str | None,
        typer.Option(help='As "SVI(epochs=20)" or "EM(restarts=50)"; left out, the route decides.'),
    ] = None,
    weights: Weights = None,
    dtype: Annotated[Precision | None, typer.Option(help="Left out, the model decides.")] = None,
    device: Annotated[str, typer.Option(help="As cpu or cuda.")] = "cpu",
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="The folder for the checkpoints of an SVI run; `resume` goes on from there."),
    ] = None,
    every_epochs: Annotated[int | None, typer.Option(min=1, help="Epochs between two checkpoints.")] = None,
    every_minutes: Annotated[
        float | None, typer.Option(help="Minutes between two checkpoints; 5 where nothing is said.")
    ] = None,
    replace: Replace = False,
    trust: Trust = False,
) -> None:
    """Fit a model to data, print how that went, and save it."""
    import torch

    from ppl_gen.cli import options
    from ppl_gen.cli.outcome import outcome_text
    from ppl_gen.cli.printing import roles_text
    from ppl_gen.data.reading import read_table
    from ppl_gen.fitting import fit as fit_model
    from ppl_gen.results.storage import check_writable

    declaration, chosen = options.declared(spec, settings, trust=trust), options.algorithm(algorithm)
    options.check_device(device)
    kept = options.checkpoints(
        checkpoint, every_epochs, every_minutes, replace=replace, data=data, weights=weights
    )
    if out is not None:
        check_writable(out, replace=replace)
    table = read_table(data, declaration, weights=weights)
    typer.echo(roles_text(table))
    precision = None if dtype is None else getattr(torch, dtype.value)
    with _route_told():
        result = fit_model(
            declaration, table, chosen, seed=seed, dtype=precision, device=device, checkpoint=kept
        )
    if out is not None:
        result.save(out, replace=replace)
    typer.echo(outcome_text(result))
    typer.echo("\nnot saved; --out DIR saves a fit" if out is None else f"\nsaved in {out}")
    leave(result.status)


@app.command()
def check(
    spec: SpecArgument,
    data: DataArgument,
    settings: Setting = [],  # noqa: B006  typer copies it
    weights: Weights = None,
    seed: Seed = 0,
    trust: Trust = False,
) -> None:
    """Hold the model's Pyro objective against the formulas, term by term, before any fitting."""
    from ppl_gen.certify.check import check as check_program
    from ppl_gen.cli import options
    from ppl_gen.cli.printing import roles_text
    from ppl_gen.data.reading import read_table
    from ppl_gen.program.program import compile_spec

    declaration = options.declared(spec, settings, trust=trust)
    table = read_table(data, declaration, weights=weights)
    typer.echo(roles_text(table))
    report = check_program(compile_spec(declaration, table.schema, seed=seed), table, seed=seed)
    typer.echo(f"\n{report}")
    if not report.ok:
        raise typer.Exit(NUMERICAL_FAILURE)


def main() -> None:
    """The entry point of `ppl-gen`."""
    app()


@contextmanager
def _route_told() -> Iterator[None]:
    """Print what the library logs meanwhile: the route of rule 21 and its reason."""

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage()
            if message.startswith("route: "):
                typer.echo(f"route     {message.removeprefix('route: ')}\n")
            elif record.levelno >= logging.WARNING:
                typer.echo(f"warning: {message}", err=True)

    log, told = logging.getLogger("ppl_gen"), Told(logging.INFO)
    level = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(told)
        log.setLevel(level)


def leave(status: Status) -> Never:
    """Exit with the code that a fit's ending has."""
    if status.name == "INTERRUPTED":
        raise typer.Exit(STOPPED)
    raise typer.Exit(0 if status.usable else NUMERICAL_FAILURE)
