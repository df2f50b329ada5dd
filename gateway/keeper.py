"""The life of one model: loaded once, watched, restarted; the only writer of its state."""

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from compression.events import OnProgress, Progress
from gateway.backends.base import Engine
from gateway.errors import ApiError, ChildFailed, EngineDown, ModelLoading, StartupError
from gateway.launch import Prepared
from gateway.metrics import Metrics, RestartReason
from gateway.protocol import EngineInfo
from gateway.settings import ModelSpec
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)


class State(StrEnum):
    """Where a model is in its life; only this module changes it."""

    STOPPED = "stopped"
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"


class Launch(Protocol):
    """What turns a spec into an engine; :class:`gateway.launch.Launcher` is the real one."""

    async def prepare(self, spec: ModelSpec, on_progress: OnProgress) -> Prepared:
        """Return a servable directory."""

    async def start(self, spec: ModelSpec, prepared: Prepared) -> Engine:
        """Return a ready engine."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with an engine; times are in seconds."""

    stall_timeout_s: float = 60.0
    probe_every_s: float = 2.0
    first_backoff_s: float = 0.25
    last_backoff_s: float = 30.0
    max_restarts: int = 6
    window_s: float = 300.0
    stop_grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model at one moment, for everybody but the pool."""

    spec: ModelSpec
    state: State
    created: int
    info: EngineInfo | None
    prepared: Prepared | None
    load_s: float | None


class Keeper:
    """Loads one model, keeps its engine alive and answers for its state."""

    def __init__(
        self,
        spec: ModelSpec,
        launch: Launch,
        *,
        metrics: Metrics,
        on_progress: OnProgress,
        patience: Patience,
    ) -> None:
        self.spec = spec
        self._launch = launch
        self._metrics = metrics
        self._on_progress = on_progress
        self._patience = patience
        self._change(State.STOPPED)
        self._created = int(time.time())
        self._engine: Engine | None = None
        self._info: EngineInfo | None = None
        self._prepared: Prepared | None = None
        self._load_s: float | None = None
        self._life: asyncio.Task[None] | None = None
        self._loaded: asyncio.Future[None] | None = None

    async def ensure_ready(self) -> None:
        """Load the model unless that has been done; concurrent calls share one load.

        Raises:
            NarrowgateError: the first load failed.
        """
        if self._loaded is None:
            self._loaded = asyncio.get_running_loop().create_future()
            self._life = asyncio.create_task(self._live(self._loaded))
        await asyncio.shield(self._loaded)

    def client(self) -> EngineClient:
        """Return the client of the ready engine.

        Raises:
            Unavailable: it is not ready; says what to wait for.
        """
        name = self.spec.served_name
        match self._state:
            case State.READY if self._engine is not None:
                return self._engine.client
            case State.STOPPED | State.LOADING:
                raise ModelLoading(f"{name} is loading: try again in a few seconds")
            case State.FAILED:
                raise EngineDown(
                    f"{name} has failed too often and is not restarted: see the server's log",
                    retry_after_s=60,
                )
        raise EngineDown(f"the engine of {name} is restarting: try again in a few seconds")

    def snapshot(self) -> Snapshot:
        """Return the model as it is now."""
        return Snapshot(
            spec=self.spec,
            state=self._state,
            created=self._created,
            info=self._info,
            prepared=self._prepared,
            load_s=self._load_s,
        )

    async def close(self, grace_s: float) -> None:
        """Stop the load or the engine; safe to repeat."""
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
        if self._engine is not None:
            await self._engine.stop(grace_s)
        self._change(State.STOPPED)

    async def _live(self, loaded: asyncio.Future[None]) -> None:
        """Load once, then restart the engine whenever it is lost."""
        try:
            prepared = await self._load()
            loaded.set_result(None)
            losses: deque[float] = deque()
            while self._engine is not None:
                reason = await self._until_lost(self._engine)
                await self._restart(prepared, reason, losses)
        except asyncio.CancelledError:
            loaded.cancel()
            raise
        except (StartupError, ApiError) as error:
            await self._give_up(loaded, error)
        except Exception as error:
            # The border of this task: a defect must not leave anybody waiting, or a stale state.
            logger.exception("%s failed on a defect", self.spec.served_name)
            words = " ".join(f"{type(error).__name__}: {error}".split())
            name = self.spec.served_name
            await self._give_up(loaded, StartupError(f"{name} cannot be served: {words}"))

    async def _give_up(self, loaded: asyncio.Future[None], error: StartupError | ApiError) -> None:
        """End in failure: tell who waits for the load, or the log if it was over."""
        self._change(State.FAILED)
        if loaded.done():
            logger.error("%s is not restarted: %s", self.spec.served_name, error)
        else:
            loaded.set_exception(error)
        if self._engine is not None:
            await self._engine.stop(0)

    async def _load(self) -> Prepared:
        self._change(State.LOADING)
        started = time.monotonic()
        prepared = await self._launch.prepare(self.spec, self._on_progress)
        self._prepared = prepared
        name = self.spec.served_name
        self._on_progress(Progress("start", 0, 0, "steps", f"the engine of {name}"))
        await self._start(prepared)
        self._on_progress(Progress("start", 1, 1, "steps", f"the engine of {name}"))
        self._load_s = time.monotonic() - started
        seconds = self._metrics.histograms["model_load_seconds"]
        seconds.labels(self.spec.alias, self.spec.variant).observe(self._load_s)
        return prepared

    async def _start(self, prepared: Prepared) -> None:
        engine = await self._launch.start(self.spec, prepared)
        try:
            info = await engine.client.info()
            prepared.require_applied(info)
        except BaseException:
            await engine.stop(0)
            raise
        self._engine, self._info = engine, info
        self._describe(info, engine.backend)
        self._change(State.READY)

    async def _until_lost(self, engine: Engine) -> RestartReason:
        """Wait until the engine has ended, or has been silent for too long."""
        ended = asyncio.ensure_future(engine.wait())
        stalled = asyncio.ensure_future(self._until_stalled(engine))
        try:
            await asyncio.wait({ended, stalled}, return_when=asyncio.FIRST_COMPLETED)
            reason: RestartReason = "exit" if ended.done() else "stall"
        finally:
            ended.cancel()
            stalled.cancel()
            await asyncio.gather(ended, stalled, return_exceptions=True)
        self._change(State.RESTARTING)
        name, words = self.spec.served_name, engine.last_words
        logger.error("the engine of %s was lost (%s); last log line: %s", name, reason, words)
        await engine.stop(0)
        return reason

    async def _until_stalled(self, engine: Engine) -> None:
        last_healthy = time.monotonic()
        while time.monotonic() - last_healthy < self._patience.stall_timeout_s:
            await asyncio.sleep(self._patience.probe_every_s)
            if await engine.client.is_healthy():
                last_healthy = time.monotonic()

    async def _restart(
        self, prepared: Prepared, reason: RestartReason, losses: deque[float]
    ) -> None:
        """Start again, with growing pauses; too many losses in the window and the model fails."""
        patience, spec = self._patience, self.spec
        self._engine = None
        while self._engine is None:
            now = time.monotonic()
            losses.append(now)
            while now - losses[0] > patience.window_s:
                losses.popleft()
            if len(losses) > patience.max_restarts:
                self._change(State.FAILED)
                logger.error("%s was lost %d times: giving up", spec.served_name, len(losses))
                return
            restarts = self._metrics.counters["engine_restarts_total"]
            restarts.labels(spec.alias, spec.variant, reason).inc()
            if len(losses) > 1:
                pause_s = patience.first_backoff_s * 2 ** (len(losses) - 2)
                await asyncio.sleep(min(patience.last_backoff_s, pause_s))
            try:
                await self._start(prepared)
            except (ChildFailed, ApiError) as error:
                reason = "exit"
                logger.error("restart of %s failed: %s", spec.served_name, error)

    def _change(self, state: State) -> None:
        self._state = state
        names, gauges = (self.spec.alias, self.spec.variant), self._metrics.gauges
        gauges["engine_up"].labels(*names).set(state is State.READY)
        for one in State:
            gauges["model_state"].labels(*names, one.value).set(one is state)

    def _describe(self, info: EngineInfo, backend: str) -> None:
        alias, variant = self.spec.alias, self.spec.variant
        manifest = (self._prepared.manifest if self._prepared else None) or {}
        gauges = self._metrics.gauges
        gauges["model_info"].labels(
            model=alias,
            variant=variant,
            recipe=variant,
            recipe_digest=info.recipe_digest or "",
            source_digest=manifest.get("source", {}).get("digest", ""),
            weight_bits=f"{info.weight_bits:.2f}",
            base_dtype=info.dtype,
            backend=backend,
        ).set(1)
        sizes = (
            ("weights_bytes", info.weights_bytes),
            ("weights_uncompressed_bytes", info.weights_bytes_before),
            ("kv_bytes_per_token", info.kv_bytes_per_token),
        )
        for name, num_bytes in sizes:
            if num_bytes is None:  # an engine that does not tell
                continue
            gauges[name].labels(model=alias, variant=variant, recipe=variant).set(num_bytes)
