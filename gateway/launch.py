"""From a model's settings to a started engine: prepare in a child process, then start."""

import logging
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compression import events
from compression.events import OnProgress, Progress
from compression.schemes import Unquantized
from gateway.backends import embedded
from gateway.backends.base import Engine
from gateway.backends.process import ChildProcess, EngineProcess
from gateway.errors import ChildFailed, LoadRefused, SchemeMismatch
from gateway.protocol import EngineInfo
from gateway.settings import ModelSpec, Settings
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

JOB_GRACE_S = 10.0
"""A job that is told to end removes what it has half written."""

_UNQUANTIZED = Unquantized().label
_EMBEDDED = ("torch", "transformers", "safetensors", "numpy")
_LACKS_EMBEDDED = re.compile(rf"ModuleNotFoundError: No module named '({'|'.join(_EMBEDDED)})'")
_HOW_TO_EMBED = "this needs the embedded extra: pip install 'narrowgate[embedded]'"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A directory that an engine can serve, and the manifest if it is an artifact."""

    directory: Path
    manifest: Mapping[str, Any] | None

    def require_applied(self, info: EngineInfo) -> None:
        """Check that the live engine runs what the artifact records; a plain checkpoint passes.

        Raises:
            SchemeMismatch: names the schemes of both.
        """
        if self.manifest is None:
            return
        matrices = (record for record in self.manifest["tensors"] if len(record["shape"]) == 2)
        recorded = {str(record["applied"]) for record in matrices}
        live = {label for label, count in info.schemes.items() if count}
        # Unquantized matrices may be recorded and yet not be layers, but never the other way.
        if live - recorded or recorded - live - {_UNQUANTIZED}:
            raise SchemeMismatch(
                f"the engine of {info.served_model_name} runs {_listed(live)}, but the artifact "
                f"{str(self.directory)!r} records {_listed(recorded)}: build it again"
            )


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
        words += [f"--model={spec.settings.model}", f"--recipe={spec.settings.recipe}"]
        if spec.settings.revision is not None:
            words += [f"--revision={spec.settings.revision}"]
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
        if self._settings.otlp_endpoint is not None:
            command += [f"--otlp-endpoint={self._settings.otlp_endpoint}"]
        return await EngineProcess.start(
            command, client, backend=embedded.BACKEND, timeout_s=self._settings.start_timeout_s
        )


async def run_job(arguments: Sequence[str], on_progress: OnProgress) -> dict[str, Any]:
    """Run ``python ARGUMENTS``, a child that reports JSON lines, and return its last event.

    Raises:
        LoadRefused: the child refused, in its own words, or its libraries are not installed.
        ChildFailed: it crashed.
    """
    if not all(find_spec(name) for name in _EMBEDDED):
        raise LoadRefused(_HOW_TO_EMBED)
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
    name = " ".join(word for word in arguments[1:3] if not word.startswith("-"))
    if job.refusal is not None:
        raise LoadRefused(job.refusal)
    if code != 0 and _LACKS_EMBEDDED.match(child.last_words):
        raise LoadRefused(_HOW_TO_EMBED)
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


def _listed(labels: set[str]) -> str:
    return ", ".join(sorted(labels)) or "nothing"


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    hint = " (out of memory?)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"
