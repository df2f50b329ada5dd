"""The frame of a child process that works for the gateway: signals, events, exit codes.

Each line on its standard output is one event (see :mod:`compression.events`); the last one tells
the result, or ``error``. Exit code 2 means refused, 130 or 143 interrupted.
"""

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from compression.errors import CompressionError
from compression.events import Progress, encode, encode_progress

EXIT_REFUSED = 2


def run_child(work: Callable[[], tuple[str, dict[str, Any]]]) -> int:
    """Run ``work``, emit the event that it returns as (kind, fields), and return the exit code."""
    caught: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        """Unwind, so that every ``finally`` on the way removes what is half-written."""
        caught.append(number)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        kind, fields = work()
    except Exception as error:
        # A library may take the exit in its midst for a failure of its own.
        if caught:
            return 128 + caught[0]
        if not isinstance(error, CompressionError):
            raise
        _emit(encode("error", {"kind": type(error).__name__, "message": str(error)}))
        return EXIT_REFUSED
    _emit(encode(kind, fields))
    return 0


def report_progress(progress: Progress) -> None:
    """Emit a progress event."""
    _emit(encode_progress(progress))


def _emit(line: str) -> None:
    print(line, flush=True)
