"""A bar on a terminal while epochs run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Progress = Callable[[int, int, float], None]  # epochs done, epochs in all, objective of the last one


@contextmanager
def progress_bar(objective: str) -> Iterator[Progress | None]:
    """A callback for `fit` that draws a bar with the objective and the time left; None where nobody looks.

    Args:
        objective: what the number is called: "ELBO" or "log-likelihood".

    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[value]}"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("fitting", total=None, value="")

        def advance(done: int, planned: int, value: float) -> None:
            bar.update(task, completed=done, total=planned, value=f"{objective} {value:,.1f}")

        yield advance
