"""The command line, `ppl-gen`."""

from ppl_gen.cli.commands import app, main  # isort: skip  `fit` stands first in the help
from ppl_gen.cli import looking, resuming, rows, selecting  # noqa: F401  their commands are registered by being imported

__all__ = ["app", "main"]
