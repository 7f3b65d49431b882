"""The command line, `ppl-gen`."""

from ppl_gen.cli import selecting  # noqa: F401  its command is registered by being imported
from ppl_gen.cli.commands import app, main

__all__ = ["app", "main"]
