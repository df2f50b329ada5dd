"""From a model's settings to a started engine: prepare in a child process, then start."""

import logging
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from compression import events
from compression.events import OnProgress, Progress
from compression.schemes import Unquantized
from gateway.backends import embedded
from gateway.backends.base import Engine
from gateway.backends.process import ChildProcess, EngineProcess
from gateway.backends.url import RemoteEngine
from gateway.errors import ChildFailed, LoadRefused, SchemeMismatch, SettingsError
from gateway.protocol import EngineInfo
from gateway.settings import Settings
from gateway.specs import VariantSpec
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
    """What an engine can serve: a directory, and the manifest if it is an artifact.

    An engine that others run has neither.
    """

    directory: Path | None
    manifest: Mapping[str, Any] | None

    @property
    def weights_bytes(self) -> int:
        """Return the bytes that the weights will take in an engine's memory."""
        if self.manifest is not None:
            return int(self.manifest["bytes_in_memory"])
        if self.directory is None:
            return 0
        return sum(file.stat().st_size for file in self.directory.glob("*.safetensors"))

    def require_applied(self, info: EngineInfo) -> None:
        """Check that the live engine runs what the artifact records; a plain checkpoint passes.

        Raises:
            SchemeMismatch: names the schemes of both.
        """
        if self.manifest is None:
            return
        matrices = (record for record in self.manifest["tensors"] if len(record["shape"]) == 2)
        recorded = {str(record["applied"]) for record in matrices}
        live = {label for label, count in (info.schemes or {}).items() if count}
        # Unquantized matrices may be recorded and yet not be layers, but never the other way.
        if live - recorded or recorded - live - {_UNQUANTIZED}:
            raise SchemeMismatch(
                f"the engine of {info.served_model_name} runs {_listed(live)}, but the artifact "
                f"{str(self.directory)!r} records {_listed(recorded)}: build it again"
            )


class Launch(Protocol):
    """What turns a spec into engines; :class:`Launcher` is the real one."""

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Return what engines can serve."""

    async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
        """Return a ready engine."""

    def memory_bytes(self, spec: VariantSpec, prepared: Prepared) -> int:
        """Return what the engines of a variant will hold in memory here, all together."""


class Launcher:
    """Prepares models with the compression package and starts engines, or connects to them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Return a servable directory: compressed now, or found in the store.

        Raises:
            LoadRefused: the model or the recipe cannot be used.
            ChildFailed: the compression crashed.
        """
        if spec.settings.urls:
            return Prepared(None, None)
        words = ["-m", "compression", "prepare"]
        words += [f"--model={spec.settings.model}", f"--recipe={spec.settings.recipe}"]
        if spec.settings.revision is not None:
            words += [f"--revision={spec.settings.revision}"]
        ready = await run_job(words, on_progress)
        return Prepared(Path(ready["directory"]), ready["manifest"])

    async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
        """Return a ready engine: a child that serves the directory, or one that others run.

        Raises:
            SettingsError: the key of engines elsewhere is not in the environment.
            ChildFailed: the engine ended or did not become ready in time.
        """
        if prepared.directory is None:
            return await self._connect(spec, replica)
        port = embedded.free_port()
        client = EngineClient(
            f"http://{embedded.HOST}:{port}",
            served_name=spec.served_name,
            read_timeout_s=self._settings.read_timeout_s,
        )
        command = embedded.command(
            prepared.directory,
            served_name=spec.served_name,
            port=port,
            settings=spec.settings,
            kv_cache_memory_bytes=self.kv_cache_bytes(spec),
        )
        if self._settings.otlp_endpoint is not None:
            command += [f"--otlp-endpoint={self._settings.otlp_endpoint}"]
        return await EngineProcess.start(
            command,
            client,
            backend=embedded.BACKEND,
            timeout_s=self._settings.start_timeout_s,
            niceness=spec.niceness,
        )

    def memory_bytes(self, spec: VariantSpec, prepared: Prepared) -> int:
        """Return what the engines of a variant will hold in memory here, all together."""
        if spec.settings.memory is not None:
            return int(spec.settings.memory)
        if prepared.directory is None:
            return 0
        cache = self.kv_cache_bytes(spec) or 0
        return spec.num_replicas * (prepared.weights_bytes + cache + embedded.OVERHEAD_BYTES)

    def kv_cache_bytes(self, spec: VariantSpec) -> int | None:
        """Return the bytes of an engine's cache; None: as the engine finds right.

        Under a budget every engine must say what it will take.
        """
        if spec.settings.kv_cache_memory_bytes is None and self._settings.memory_budget:
            return embedded.BUDGETED_KV_BYTES
        return spec.settings.kv_cache_memory_bytes

    async def _connect(self, spec: VariantSpec, replica: int) -> Engine:
        api_key = None
        if (name := spec.settings.url_api_key_env) is not None:
            api_key = os.environ.get(name)
            if not api_key:
                raise SettingsError(
                    f"model {spec.alias!r}: the environment variable {name!r} "
                    "('url_api_key_env') is not set: set it to the engine's key"
                )
        client = EngineClient(
            spec.settings.urls[replica],
            served_name=spec.settings.model,
            read_timeout_s=self._settings.read_timeout_s,
            api_key=api_key,
        )
        return await RemoteEngine.connect(client, timeout_s=self._settings.start_timeout_s)


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
