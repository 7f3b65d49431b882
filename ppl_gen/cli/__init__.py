"""The command line, `ppl-gen`."""

from ppl_gen.cli.commands import app, main

__all__ = ["app", "main"]
