"""A child process of ours that does one long piece of work and reports it as JSON lines."""

import logging
import re
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from compression import events
from compression.events import OnProgress, Progress
from gateway.backends.process import ChildProcess, ending
from gateway.errors import ChildFailed, LoadRefused

logger = logging.getLogger(__name__)

JOB_GRACE_S = 10.0
"""A job that is told to end removes what it has half written."""

_EMBEDDED = ("torch", "transformers", "safetensors", "numpy")
_LACKS_EMBEDDED = re.compile(rf"ModuleNotFoundError: No module named '({'|'.join(_EMBEDDED)})'")
_HOW_TO_EMBED = "this needs the embedded extra: pip install 'narrowgate[embedded]'"


async def run_job(
    arguments: Sequence[str], on_progress: OnProgress, *, niceness: int = 0
) -> dict[str, Any]:
    """Run ``python ARGUMENTS``, a child that reports JSON lines, and return its last event.

    ``niceness`` is how far it stands back for other processes.

    Raises:
        LoadRefused: the child refused, in its own words, or its libraries are not installed.
        ChildFailed: it crashed.
    """
    if not has_embedded():
        raise LoadRefused(_HOW_TO_EMBED)
    job = _Job(on_progress)
    child = await ChildProcess.start(
        [sys.executable, *arguments],
        on_stdout=job.on_stdout,
        on_stderr=lambda line: logger.info("%s", line),
        death_signal=signal.SIGTERM,
        niceness=niceness,
    )
    try:
        code = await child.wait()
    finally:
        await child.stop(JOB_GRACE_S)
    name = " ".join(word for word in arguments[1:3] if not word.startswith("-"))
    if job.refusal is not None:
        raise LoadRefused(job.refusal)
    if code != 0 and _LACKS_EMBEDDED.match(child.last_words):
        raise LoadRefused(_HOW_TO_EMBED)
    if code != 0:
        raise ChildFailed(f"`{name}` {ending(code)}: {child.last_words}")
    if job.result is None:
        raise ChildFailed(f"`{name}` ended without a result: {child.last_words}")
    return job.result


def has_embedded() -> bool:
    """Return whether the libraries of the embedded engine are installed."""
    return all(find_spec(name) for name in _EMBEDDED)


class _Job:
    """Reads a child's JSON lines."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self.result: dict[str, Any] | None = None
        self.refusal: str | None = None

    def on_stdout(self, line: str) -> None:
        try:
            fields = events.decode(line)
        except ValueError:
            logger.info("%s", line)  # a library's print
            return
        match fields.pop("event"):
            case "progress":
                self._on_progress(Progress(**fields))
            case "error":
                self.refusal = str(fields["message"])
            case _:
                self.result = fields
