"""From a model's settings to a started engine: prepare in a child process, then start."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from compression.events import OnProgress, Progress, ignore
from compression.recipe import FULL
from gateway.backends import embedded, vllm
from gateway.backends.base import Engine
from gateway.backends.begun import Begun
from gateway.backends.process import EngineProcess
from gateway.backends.pulse import Pulse
from gateway.backends.url import RemoteEngine
from gateway.backends.vllm_pulse import VllmPulse
from gateway.errors import SettingsError
from gateway.fixed_reading import with_reading
from gateway.job import has_embedded, run_job
from gateway.prepared import Prepared
from gateway.settings import Settings
from gateway.specs import VariantSpec, first_loaded
from gateway.upstream import EngineClient
from gateway.vllm_launch import check_vllm, recipe_of, require_servable, start_vllm


class Launch(Protocol):
    """What turns a spec into engines; :class:`Launcher` is the real one."""

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Return what engines can serve."""

    async def read(
        self, spec: VariantSpec, prepared: Prepared, on_progress: OnProgress
    ) -> Prepared:
        """Return it with what its engines are held against; their memory is set aside by then."""

    async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
        """Return a ready engine."""

    def memory_bytes(self, spec: VariantSpec, prepared: Prepared) -> int:
        """Return what the engines of a variant will hold in memory here, all together."""


async def prepare(
    spec: VariantSpec,
    on_progress: OnProgress,
    *,
    is_measured: bool,
    stall_s: float | None = None,
) -> Prepared:
    """Return a servable directory; ``is_measured`` puts its fidelity into the manifest.

    The compression may make no progress for ``stall_s`` seconds; None: for ever.

    Raises:
        LoadRefused: the model or the recipe cannot be used, or not with this engine.
        ChildFailed: the compression crashed, or made no progress.
    """
    settings = spec.settings
    if settings.urls:
        recipe = recipe_of(settings)
        if recipe is None:
            return Prepared(None, None, called=FULL)
        return Prepared(None, None, called=recipe.name, called_digest=recipe.digest)
    start = None
    if settings.engine == vllm.BACKEND:
        start = await check_vllm(settings, recipe_of(settings))
    words = ["-m", "compression", "prepare"]
    words += [f"--model={settings.model}", f"--recipe={settings.recipe}"]
    if settings.revision is not None:
        words += [f"--revision={settings.revision}"]
    if is_measured:
        words += ["--fidelity"]
    if spec.is_reference:
        words += ["--digest"]
    ready = await run_job(words, on_progress, niceness=spec.niceness, stall_s=stall_s)
    directory, manifest = Path(ready["directory"]), ready["manifest"]
    if start is not None:
        require_servable(start, directory, settings.model)
    return Prepared(directory, manifest, ready["digest"])


class Launcher:
    """Prepares models with the compression package and starts engines, or connects to them."""

    def __init__(self, settings: Settings, on_progress: OnProgress = ignore) -> None:
        self._settings = settings
        self._on_progress = on_progress
        self._begun = Begun()

    async def begin(self) -> None:
        """Begin the engine that will be wanted first, if it is plain which one that is.

        Its libraries take longer to load than it takes to find an artifact in the store. Under a
        memory budget it waits its turn.
        """
        spec = first_loaded(self._settings)
        if spec is None or spec.settings.urls or spec.settings.engine == vllm.BACKEND:
            return
        if self._settings.memory_budget is None and has_embedded():
            port = embedded.free_port()
            command = self._command(spec, embedded.TOLD_LATER, port)
            await self._begun.begin(spec, command, self._client(spec, port))

    async def close(self) -> None:
        """End an engine that was begun and never wanted."""
        await self._begun.close()

    async def prepare(self, spec: VariantSpec, on_progress: OnProgress) -> Prepared:
        """Return a servable directory: compressed now, or found in the store.

        Raises:
            LoadRefused: the model or the recipe cannot be used, or not with this engine.
            ChildFailed: the compression crashed, or made no progress.
        """

        self._begun.keep_for(spec)
        try:
            return await prepare(
                spec,
                self._alone(on_progress),
                is_measured=self._needs_fidelity(spec),
                stall_s=self._settings.prepare_timeout_s,
            )
        except BaseException:
            self._begun.drop()
            raise

    async def read(
        self, spec: VariantSpec, prepared: Prepared, on_progress: OnProgress
    ) -> Prepared:
        """Return it with what a sound engine reads of its fixed texts, read now if need be.

        That is a process beside the gateway, which ends before an engine starts and holds less: it
        lives in the memory that is set aside for the engines.
        """
        directory, is_ours = prepared.directory, spec.settings.engine != vllm.BACKEND
        if directory is None or not is_ours or spec.variant == FULL:
            return prepared
        try:
            manifest = await with_reading(
                directory,
                prepared.manifest,
                self._alone(on_progress),
                niceness=spec.niceness,
                stall_s=self._settings.prepare_timeout_s,
            )
        except BaseException:
            self._begun.drop()
            raise
        return replace(prepared, manifest=manifest)

    async def start(self, spec: VariantSpec, prepared: Prepared, replica: int) -> Engine:
        """Return a ready engine: a child that serves the directory, or one that others run.

        Raises:
            SettingsError: the key of engines elsewhere is not in the environment.
            LoadRefused: vLLM cannot serve it, or lacks an option.
            ChildFailed: the engine ended or did not become ready in time.
        """
        if prepared.directory is None:
            return await self._connect(spec, replica)
        if replica == 0 and (begun := self._begun.take(spec)) is not None:
            await begun.serve(prepared.directory, self._settings.start_timeout_s)
            return begun
        port = embedded.free_port()
        client = self._client(spec, port)
        if spec.settings.engine == vllm.BACKEND:
            return await start_vllm(
                await check_vllm(spec.settings, recipe_of(spec.settings)),
                prepared.directory,
                client,
                settings=spec.settings,
                port=port,
                replica=replica,
                otlp_endpoint=self._settings.otlp_endpoint,
                timeout_s=self._settings.start_timeout_s,
                niceness=spec.niceness,
                on_progress=self._on_progress,
            )
        return await EngineProcess.start(
            self._command(spec, prepared.directory, port),
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
        if spec.settings.engine == vllm.BACKEND:
            held = spec.settings.kv_cache_memory_bytes or vllm.CPU_KV_BYTES
            held += vllm.OVERHEAD_BYTES
        else:
            held = (self.kv_cache_bytes(spec) or 0) + embedded.OVERHEAD_BYTES
            held += self.row_memory_bytes(spec)
        return spec.num_replicas * (prepared.weights_bytes + held)

    def kv_cache_bytes(self, spec: VariantSpec) -> int | None:
        """Return the bytes of an embedded engine's cache; None: as the engine finds right.

        Under a budget every engine must say what it will take.
        """
        if spec.settings.kv_cache_memory_bytes is None and self._settings.memory_budget:
            return embedded.BUDGETED_KV_BYTES
        return spec.settings.kv_cache_memory_bytes

    def row_memory_bytes(self, spec: VariantSpec) -> int:
        """Return what an embedded engine may hold of answers that wait for an exact score."""
        shadow = self._settings.shadow
        is_exact = shadow.estimator_of(spec.alias, spec.settings) == "exact"
        return int(shadow.exact_memory) if is_exact else 0

    def _alone(self, on_progress: OnProgress) -> Callable[[Progress], None]:
        """Return a listener that ends what was begun at the first sign of work beside it."""

        def tell(progress: Progress) -> None:
            self._begun.drop()  # what makes progress takes long, and the memory with it
            on_progress(progress)

        return tell

    def _client(self, spec: VariantSpec, port: int) -> EngineClient:
        return EngineClient(
            f"http://{embedded.HOST}:{port}",
            served_name=spec.served_name,
            read_timeout_s=self._settings.read_timeout_s,
        )

    def _command(self, spec: VariantSpec, directory: Path, port: int) -> list[str]:
        command = embedded.command(
            directory,
            served_name=spec.served_name,
            port=port,
            settings=spec.settings,
            kv_cache_memory_bytes=self.kv_cache_bytes(spec),
        )
        if row_bytes := self.row_memory_bytes(spec):
            command += [f"--row-memory-bytes={row_bytes}"]
        if spec.is_reference and self._settings.shadow.estimator == "exact":
            command += ["--read-in-float32", "--fetch-rows"]
        if self._settings.otlp_endpoint is not None:
            command += [f"--otlp-endpoint={self._settings.otlp_endpoint}"]
        return command

    def _needs_fidelity(self, spec: VariantSpec) -> bool:
        """Return whether verdicts must know what is usual of a variant."""
        shadow = self._settings.shadow
        is_scored = self._settings.shadow_rate(spec.alias) > 0 and spec.settings.recipe != FULL
        return is_scored and "all" not in shadow.verdict.tolerance

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
        pulse: Pulse | None = VllmPulse(client) if spec.settings.engine == vllm.BACKEND else None
        return await RemoteEngine.connect(
            client, timeout_s=self._settings.start_timeout_s, pulse=pulse
        )
