"""A child process of ours that does one long piece of work and reports it as JSON lines."""

import asyncio
import logging
import re
import signal
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from compression import events
from compression.events import OnProgress, Progress
from gateway.backends.child import ChildProcess, ending
from gateway.errors import ChildFailed, LoadRefused

logger = logging.getLogger(__name__)

JOB_GRACE_S = 10.0
"""A job that is told to end removes what it has half written."""

_EMBEDDED = ("torch", "transformers", "safetensors", "numpy")
_LACKS_EMBEDDED = re.compile(rf"ModuleNotFoundError: No module named '({'|'.join(_EMBEDDED)})'")
_HOW_TO_EMBED = "this needs the embedded extra: pip install 'narrowgate[embedded]'"


async def run_job(
    arguments: Sequence[str],
    on_progress: OnProgress,
    *,
    niceness: int = 0,
    stall_s: float | None = None,
) -> dict[str, Any]:
    """Run ``python ARGUMENTS``, a child that reports JSON lines, and return its last event.

    ``niceness`` is how far it stands back for other processes. One that makes no progress for
    ``stall_s`` seconds, the setting ``prepare_timeout_s``, is ended; None: it is waited for.

    Raises:
        LoadRefused: the child refused, in its own words, or its libraries are not installed.
        ChildFailed: it crashed, or made no progress.
    """
    if not has_embedded():
        raise LoadRefused(_HOW_TO_EMBED)
    job = _Job(on_progress)
    child = await ChildProcess.start(
        [sys.executable, *arguments],
        on_stdout=job.on_stdout,
        on_stderr=job.on_stderr,
        death_signal=signal.SIGTERM,
        niceness=niceness,
    )
    try:
        code = await _ended(child, job, stall_s)
    finally:
        await child.stop(JOB_GRACE_S)
    name = " ".join(word for word in arguments[1:3] if not word.startswith("-"))
    if code is None:
        raise ChildFailed(
            f"`{name}` made no progress for {stall_s:g} s and was ended (its last word: "
            f"{job.place or child.last_words}): see what holds it up, or raise prepare_timeout_s"
        )
    if job.refusal is not None:
        raise LoadRefused(job.refusal)
    if code != 0 and _LACKS_EMBEDDED.match(child.last_words):
        raise LoadRefused(_HOW_TO_EMBED)
    if code != 0:
        raise ChildFailed(f"`{name}` {ending(code)}: {child.last_words}")
    if job.result is None:
        raise ChildFailed(f"`{name}` ended without a result: {child.last_words}")
    return job.result


async def _ended(child: ChildProcess, job: "_Job", stall_s: float | None) -> int | None:
    """Return the exit code of a child, or None where it made no progress for so long."""
    if stall_s is None:
        return await child.wait()
    ended = asyncio.ensure_future(child.wait())
    try:
        while not ended.done() and (left_s := job.moved_at + stall_s - time.monotonic()) > 0:
            await asyncio.wait({ended}, timeout=left_s)
        return ended.result() if ended.done() else None
    finally:
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)


def has_embedded() -> bool:
    """Return whether the libraries of the embedded engine are installed."""
    return all(find_spec(name) for name in _EMBEDDED)


class _Job:
    """Reads a child's JSON lines, and when it last got on: the same words again are no progress."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._last_lines = ["", ""]
        self._progress: Progress | None = None
        self.moved_at = time.monotonic()
        self.result: dict[str, Any] | None = None
        self.refusal: str | None = None

    @property
    def place(self) -> str | None:
        """Return how far it said it was, in words."""
        told = self._progress
        if told is None:
            return None
        return f"{told.stage} {told.done} of {told.total or '?'} {told.unit} {told.detail}".rstrip()

    def on_stderr(self, line: str) -> None:
        self._move(1, line)
        logger.info("%s", line)

    def on_stdout(self, line: str) -> None:
        self._move(0, line)
        try:
            fields = events.decode(line)
        except ValueError:
            logger.info("%s", line)  # a library's print
            return
        match fields.pop("event"):
            case "progress":
                self._progress = Progress(**fields)
                self._on_progress(self._progress)
            case "error":
                self.refusal = str(fields["message"])
            case _:
                self.result = fields

    def _move(self, stream: int, line: str) -> None:
        if line != self._last_lines[stream]:
            self._last_lines[stream] = line
            self.moved_at = time.monotonic()
