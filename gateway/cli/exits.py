"""The exit codes of commands."""

from gateway.serve import EXIT_INTERRUPTED

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_REFUSED", "EXIT_TERMINATED"]

EXIT_FAILED = 1
EXIT_REFUSED = 2
EXIT_TERMINATED = 143
