"""A bar on a terminal while SVI runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Progress = Callable[[int, int, float], None]  # epochs done, epochs in all, ELBO of the last one


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """A callback for `fit` that draws a bar with the ELBO and the time left; None where nobody looks."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[elbo]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("fitting", total=None, elbo="")

        def advance(done: int, planned: int, elbo: float) -> None:
            bar.update(task, completed=done, total=planned, elbo=f"ELBO {elbo:,.1f}")

        yield advance
