"""The three kinds of mistake a user can make, each also a `ValueError`."""

from __future__ import annotations


class SpecError(ValueError):
    """A declaration is wrong: an unknown name, a size that does not fit, a term that cannot stand there.

    `section` ("model", "guide", "columns"), `node` (the entry's name) and `word` (the offending word in the
    entry's text) say where, as far as known, so that a reader of a file can add the line and the column.
    """

    def __init__(
        self, message: str, *, section: str | None = None, node: str | None = None, word: str | None = None
    ) -> None:
        super().__init__(message)
        self.section = section
        self.node = node
        self.word = word


class DataError(ValueError):
    """The data do not fit the declaration: a missing column, a value outside a support, a wrong width."""


class FitError(ValueError):
    """A fit cannot be run, queried, saved or read as asked."""
