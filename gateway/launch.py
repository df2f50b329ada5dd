"""From a model's settings to a started engine: prepare in a child process, then start."""

import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression import events
from compression.events import OnProgress, Progress
from gateway.backends import embedded
from gateway.backends.base import Engine
from gateway.backends.process import ChildProcess, EngineProcess
from gateway.errors import ChildFailed, LoadRefused
from gateway.settings import ModelSpec, Settings
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

JOB_GRACE_S = 10.0
"""A job that is told to end removes what it has half written."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A directory that an engine can serve, and the manifest if it is an artifact."""

    directory: Path
    manifest: Mapping[str, Any] | None


class Launcher:
    """Prepares models with the compression package and starts embedded engines."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def prepare(self, spec: ModelSpec, on_progress: OnProgress) -> Prepared:
        """Return a servable directory: compressed now, or found in the store.

        Raises:
            LoadRefused: the model or the recipe cannot be used.
            ChildFailed: the compression crashed.
        """
        words = ["-m", "compression", "prepare"]
        words += ["--model", spec.settings.model, "--recipe", spec.settings.recipe]
        if spec.settings.revision is not None:
            words += ["--revision", spec.settings.revision]
        ready = await run_job(words, on_progress)
        return Prepared(Path(ready["directory"]), ready["manifest"])

    async def start(self, spec: ModelSpec, prepared: Prepared) -> Engine:
        """Return a ready engine for a prepared directory.

        Raises:
            ChildFailed: the engine ended or did not become ready in time.
        """
        port = embedded.free_port()
        client = EngineClient(
            f"http://{embedded.HOST}:{port}",
            served_name=spec.served_name,
            read_timeout_s=self._settings.read_timeout_s,
        )
        command = embedded.command(
            prepared.directory, served_name=spec.served_name, port=port, settings=spec.settings
        )
        return await EngineProcess.start(
            command, client, backend=embedded.BACKEND, timeout_s=self._settings.start_timeout_s
        )


async def run_job(arguments: Sequence[str], on_progress: OnProgress) -> dict[str, Any]:
    """Run ``python ARGUMENTS``, a child that reports JSON lines, and return its last event.

    Raises:
        LoadRefused: the child refused, in its own words.
        ChildFailed: it crashed.
    """
    job = _Job(on_progress)
    child = await ChildProcess.start(
        [sys.executable, *arguments],
        on_stdout=job.on_stdout,
        on_stderr=lambda line: logger.info("%s", line),
        death_signal=signal.SIGTERM,
    )
    try:
        code = await child.wait()
    finally:
        await child.stop(JOB_GRACE_S)
    name = " ".join(arguments[1:3])
    if job.refusal is not None:
        raise LoadRefused(job.refusal)
    if code != 0:
        raise ChildFailed(f"`{name}` {_ending(code)}: {child.last_words}")
    if job.result is None:
        raise ChildFailed(f"`{name}` ended without a result: {child.last_words}")
    return job.result


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


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"
