"""The command line: one file a command, :mod:`gateway.cli.parser` has all flags."""

from collections.abc import Sequence

from gateway.collector import collector_paused


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    with collector_paused():
        from gateway.cli import program

    return program.main(arguments)
