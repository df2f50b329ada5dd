"""The command line: one file a command, :mod:`gateway.cli.parser` has all flags."""

from gateway.cli.program import main

__all__ = ["main"]
