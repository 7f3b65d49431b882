"""Selection: the candidates, what speaks for each, and the one that was chosen."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ppl_gen.diagnose.criteria import plot_criterion
from ppl_gen.errors import FitError
from ppl_gen.results.fit import Fit
from ppl_gen.selecting.likelihood_ratio import LEVEL

# Criterion → the column it is read from, and how it is written.
CRITERIA = {
    "aic": ("aic", "AIC"),
    "bic": ("bic", "BIC"),
    "icl": ("icl", "ICL"),
    "cv": ("cv", "held-out log-likelihood per row"),
    "blrt": ("blrt_p", "bootstrap p-value"),
}
SHOWN = {
    "log_likelihood": ("log-lik.", "{:.3f}"),
    "parameters": ("free", "{:.0f}"),
    "aic": ("AIC", "{:.2f}"),
    "bic": ("BIC", "{:.2f}"),
    "icl": ("ICL", "{:.2f}"),
    "cv": ("held out", "{:.4f}"),
    "cv_se": ("± SE", "{:.4f}"),
    "blrt": ("2·LR", "{:.3f}"),
    "blrt_p": ("p", "{:.3f}"),
    "hits": ("hits", "{}"),
    "status": ("status", "{}"),
}
WIDTH = 110  # letters of a line of warnings


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The outcome of `select`.

    Args:
        table: a row for each candidate, in the grid's order. Its columns: the settings; log_likelihood,
            parameters (free numbers), aic, bic, icl; cv and cv_se (mean log-density per unit held out, its
            standard error) or blrt and blrt_p (2·log-likelihood ratio to the size before, its p-value) where
            asked for; status, hits (restarts that reached the best mode), restarts (run to their end),
            warnings. Numbers of a candidate that has no answer are NaN, and `warnings` says why.
        fits: of each row; None where there is none.
        criterion: what was chosen by.
        settings: the columns that tell the candidates apart.
        chosen: the row of the best; None where Ctrl-C came before there was one.
        notes: what a reader should know of the selection as a whole.

    `str` of it is the table for a terminal.
    """

    table: pd.DataFrame
    fits: tuple[Fit | None, ...]
    criterion: str
    settings: tuple[str, ...]
    chosen: int | None
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Fit:
        """The fit of the candidate that the criterion prefers.

        Raises:
            FitError: there is none, Ctrl-C having come before.

        """
        found = None if self.chosen is None else self.fits[self.chosen]
        if found is None:
            raise FitError(f"no candidate was chosen: {'; '.join(self.notes) or 'none has a criterion'}")
        return found

    def plot(self, path: str | Path | None = None) -> Figure:
        """The criterion against the grid, the best candidate ringed, doubtful ones open.

        Args:
            path: a file to write, its kind being that of its suffix; None: none.

        Raises:
            FitError: the file cannot be written.

        """
        column, label = CRITERIA[self.criterion]
        level = LEVEL if self.criterion == "blrt" else None
        figure = plot_criterion(self.table, self.settings, column, label, self.chosen, level)
        if path is not None:
            try:
                figure.savefig(path)
            except (ValueError, OSError) as error:  # a suffix that Matplotlib does not know, a full disk
                raise FitError(f"{path}: cannot be written: {error}") from error
        return figure

    def name(self, row: int) -> str:
        """The settings of a row, as "z.k=3, x.cov=Free()"."""
        own = self.table.iloc[row]
        return ", ".join(f"{path}={own[path]}" for path in self.settings) or "the declaration"

    def verdict(self) -> str:
        """One sentence: what was chosen, and by how much."""
        column, label = CRITERIA[self.criterion]
        if self.chosen is None:
            return "no candidate was chosen"
        if self.criterion == "blrt":
            return f"chosen by bootstrap tests, each size against the next: {self.name(self.chosen)}"
        value = float(self.table[column].iloc[self.chosen])
        said = f"best by {label}: {self.name(self.chosen)}, {value:.{4 if column == 'cv' else 2}f}"
        others = self.table[column].drop(self.table.index[self.chosen]).dropna()
        if others.empty:
            return said
        row = int(others.idxmax() if column == "cv" else others.idxmin())
        apart = abs(float(self.table[column].iloc[row]) - value)
        return f"{said}; next {self.name(row)}, {apart:.{4 if column == 'cv' else 2}f} behind"

    def __repr__(self) -> str:
        return f"Selection({len(self.table)} candidates; {self.verdict()})"

    def __str__(self) -> str:
        columns = [["", *("*" if row == self.chosen else "" for row in range(len(self.table)))]]
        for path in self.settings:
            columns.append([path, *map(str, self.table[path])])
        for name, (title, form) in SHOWN.items():
            if name in self.table:
                columns.append([title, *(self._cell(row, name, form) for row in range(len(self.table)))])
        text = {0, *range(1, 1 + len(self.settings)), len(columns) - 1}  # the others are numbers
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "  ".join(
                f"{cell:<{width}}" if place in text else f"{cell:>{width}}"
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in zip(*columns, strict=True)
        ]
        warned = [
            textwrap.fill(f"{self.name(row)}: {said}", WIDTH, initial_indent="  ", subsequent_indent="    ")
            for row, said in enumerate(self.table["warnings"])
            if said
        ]
        return "\n".join(
            [*lines, "", self.verdict(), *self.notes, *(["", "warnings", *warned] if warned else [])]
        )

    def _cell(self, row: int, name: str, form: str) -> str:
        value: Any = self.table[name].iloc[row]
        if name == "hits":
            return f"{value}/{self.table['restarts'].iloc[row]}" if value else ""
        if isinstance(value, float) and math.isnan(value):
            return ""
        return form.format(value)
