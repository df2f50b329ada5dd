"""The life of one variant: loaded once for all who ask, used by leases, stopped, loaded again."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from compression.events import OnProgress, Progress
from gateway.demand import Demand
from gateway.errors import ApiError, EngineDown, ModelLoading, NarrowgateError, StartupError
from gateway.launch import Launch
from gateway.model_settings import ModelSettings
from gateway.pool.policy import Resident
from gateway.pool.replica import Replica, TryEngine
from gateway.pool.replicas import Replicas
from gateway.pool.state import Patience, Snapshot, State
from gateway.prepared import Prepared
from gateway.registry import Metrics
from gateway.specs import VariantSpec

logger = logging.getLogger(__name__)

MakeRoom = Callable[["Variant", int], Awaitable[None]]
"""Reserves so many bytes for a variant, at the cost of others where it must."""


class Variant:
    """One way to serve a model: its replicas, its load, and the requests that use it."""

    def __init__(
        self,
        spec: VariantSpec,
        model: ModelSettings,
        *,
        launch: Launch,
        metrics: Metrics,
        patience: Patience,
        on_progress: OnProgress,
        on_change: Callable[["Variant"], None],
        on_idle: Callable[[], None],
        make_room: MakeRoom,
        try_engine: TryEngine,
    ) -> None:
        self.spec = spec
        self.num_running = 0
        self.is_active = False
        self.is_held = False
        """Whether it must stay in memory for now, in use or not; its model says so."""
        self.is_borrowed = False
        """Whether it was loaded for one question: nobody asked for it to stay."""
        self._model = model
        self._launch = launch
        self._metrics = metrics
        self._patience = patience
        self._on_progress = on_progress
        self._on_change = on_change
        self._on_idle = on_idle
        self._make_room = make_room
        self._state = State.STOPPED
        self._created = int(time.time())
        self._last_used = time.monotonic()
        self._replicas = Replicas(
            spec,
            launch=launch,
            metrics=metrics,
            patience=patience,
            try_engine=try_engine,
            on_change=self._replica_changed,
        )
        self._prepared: Prepared | None = None
        self._reserved_bytes = self._resident_bytes = 0
        self._load_s: float | None = None
        self._load: asyncio.Task[None] | None = None
        self._failed_at = -float("inf")
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopping = asyncio.Lock()
        self._stops: set[asyncio.Task[None]] = set()

    @property
    def state(self) -> State:
        """Return the state; once loaded, it follows from the replicas."""
        return self._replicas.state if self._state is State.READY else self._state

    @property
    def replicas(self) -> Sequence[Replica]:
        """Return its engines."""
        return tuple(self._replicas)

    @property
    def is_resident(self) -> bool:
        """Return whether it holds memory, or is about to."""
        return len(self._replicas) > 0 or self._reserved_bytes > 0

    def resident(self) -> Resident:
        """Return it as decisions about memory see it."""
        return Resident(
            name=self.spec.served_name,
            num_bytes=self.num_bytes,
            is_in_use=self.num_running > 0 or self.is_held or self._state is not State.READY,
            is_pinned=self._model.pin and self.is_active,
            last_used=self._last_used,
            keep_alive_s=self._model.keep_alive_s
            or (self._patience.borrowed_s if self.is_borrowed and not self.is_active else None),
        )

    @property
    def num_bytes(self) -> int:
        """Return what its engines last held, or what was set aside for them if that is more."""
        return max(self._reserved_bytes, self._resident_bytes)

    def needed_bytes(self) -> int:
        """Return what it would hold if it were loaded; 0: that is not known before it is made."""
        if self._prepared is None:
            return int(self.spec.settings.memory or 0)
        return self._launch.memory_bytes(self.spec, self._prepared)

    async def measure(self) -> None:
        """Read what its engines hold, in a thread: this looks at every process of the machine."""
        engines = self._replicas.engines
        held = await asyncio.to_thread(lambda: sum(each.resident_bytes() for each in engines))
        if engines == self._replicas.engines:
            self._resident_bytes = held

    def reserve(self, num_bytes: int) -> None:
        """Set so much memory aside for it, until it is stopped."""
        self._reserved_bytes = num_bytes

    async def ensure_ready(self) -> None:
        """Load it unless it is ready; concurrent calls share one load.

        Raises:
            NarrowgateError: the load failed or was ended; a new one is tried after a pause only.
        """
        async with self._stopping:
            load = self._start_load()
        await asyncio.wait({load})
        self._require_loaded(load)
        if self.state is not State.READY:
            raise self._reason()

    async def wait_ready(self, timeout_s: float) -> None:
        """Load it unless that has been done, for a request that can wait so long.

        Raises:
            ModelLoading: it takes longer; the load goes on.
            EngineDown: it cannot be loaded.
        """
        name = self.spec.served_name
        load = self._load
        try:
            async with asyncio.timeout(timeout_s):
                async with self._stopping:
                    load = self._start_load()
                await asyncio.wait({load})
        except TimeoutError:
            if load is None or not load.done():
                raise ModelLoading(f"{name} is loading: try again in a few seconds") from None
        try:
            self._require_loaded(load)
        except ApiError:
            raise
        except StartupError:
            raise EngineDown(
                f"{name} could not be loaded: see the server's log",
                retry_after_s=self._patience.retry_load_after_s,
            ) from None

    @contextmanager
    def use(self, demand: Demand, excluding: Collection[Replica] = ()) -> Iterator[Replica]:
        """Count one running request against a replica while the block is open.

        Raises:
            ModelLoading: it is not loaded.
            EngineDown: no replica takes requests now; says what to wait for.
        """
        is_loaded = self._state is State.READY
        replica = self._replicas.choose(demand, excluding) if is_loaded else None
        if replica is None:
            raise self._reason()
        self.num_running += 1
        self._idle.clear()
        try:
            with replica.use(demand):
                yield replica
        finally:
            self.num_running -= 1
            self._last_used = time.monotonic()
            if not self.num_running:
                self._idle.set()
                self._on_idle()

    async def stop(self, grace_s: float, *, drain_s: float | None = 0) -> None:
        """Stop its load or its engines; it can be loaded again. Safe to repeat.

        New requests wait from now on, running ones may finish for ``drain_s`` seconds (None: for as
        long as they take). Once begun it goes on to its end, also if the caller is cancelled.
        """
        await asyncio.shield(self.begin_stop(grace_s, drain_s=drain_s))

    def begin_stop(self, grace_s: float, *, drain_s: float | None) -> asyncio.Task[None]:
        """Do as ``stop`` does in a task of its own, and return that."""
        return self._begin(self._stop(grace_s, drain_s, only_idle=False))

    async def stop_if_idle(self, grace_s: float) -> None:
        """Stop its engines unless somebody has begun to use it meanwhile."""
        await asyncio.shield(self._begin(self._stop(grace_s, 0, only_idle=True)))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)
        return task

    async def _stop(self, grace_s: float, drain_s: float | None, *, only_idle: bool) -> None:
        async with self._stopping:
            if only_idle and self.resident().is_in_use:
                return
            if self._load is not None and not self._load.done():
                self._load.cancel()
                await asyncio.gather(self._load, return_exceptions=True)
            if self._replicas:
                self._change(State.STOPPING)
                await self._finish_requests(drain_s)
            await self._stop_replicas(grace_s)
            self._load, self.is_borrowed = None, False
            self._failed_at = -float("inf")
            self._change(State.STOPPED)

    def snapshot(self) -> Snapshot:
        """Return the variant as it is now."""
        infos = [replica.info for replica in self._replicas if replica.info is not None]
        return Snapshot(
            spec=self.spec,
            state=self.state,
            is_active=self.is_active,
            created=self._created,
            info=infos[0] if infos else None,
            prepared=self._prepared,
            load_s=self._load_s,
            num_running=self.num_running,
            num_bytes=self.num_bytes,
            backend=next((each.engine.backend for each in self._replicas if each.engine), None),
            idle_s=None if self.num_running else time.monotonic() - self._last_used,
            replicas=tuple(replica.snapshot() for replica in self._replicas),
        )

    def _start_load(self) -> asyncio.Task[None]:
        load = self._load
        is_over = time.monotonic() - self._failed_at >= self._patience.retry_load_after_s
        if load is None or (load.done() and self._has_failed and is_over):
            load = self._load = asyncio.create_task(self._load_once())
            # Whoever waited may have left; the error is in the log all the same.
            load.add_done_callback(lambda task: task.cancelled() or task.exception())
        return load

    def _require_loaded(self, load: asyncio.Task[None]) -> None:
        if load.cancelled():
            raise EngineDown(f"{self.spec.served_name} is being stopped: try again")
        if (error := load.exception()) is not None:
            raise error

    @property
    def _has_failed(self) -> bool:
        # One whose replicas were given up is loaded anew like one that never loaded.
        return self.state is State.FAILED

    async def _load_once(self) -> None:
        name = self.spec.served_name
        await self._stop_replicas(0)
        self._change(State.LOADING)
        started = time.monotonic()
        try:
            self._prepared = await self._launch.prepare(self.spec, self._on_progress)
            num_bytes = self._launch.memory_bytes(self.spec, self._prepared)
            await self._make_room(self, num_bytes)
            self._prepared = await self._launch.read(self.spec, self._prepared, self._on_progress)
            self._on_progress(Progress("start", 0, 0, "steps", f"the engine of {name}"))
            await self._replicas.start(self._prepared)
            self._on_progress(Progress("start", 1, 1, "steps", f"the engine of {name}"))
        except asyncio.CancelledError:
            await self._stop_replicas(0)
            self._change(State.STOPPED)
            raise
        except Exception as error:
            # The border of this task: a defect must not leave anybody waiting, or a stale state.
            await self._stop_replicas(0)
            self._failed_at = time.monotonic()
            self._change(State.FAILED)
            if isinstance(error, NarrowgateError):
                logger.error("%s could not be loaded: %s", name, error)
                raise
            logger.exception("%s failed on a defect", name)
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise StartupError(f"{name} cannot be served: {words}") from error
        self._load_s = time.monotonic() - started
        self._last_used = time.monotonic()
        seconds = self._metrics.histograms["model_load_seconds"]
        seconds.labels(self.spec.alias, self.spec.variant).observe(self._load_s)
        self._change(State.READY)

    async def _finish_requests(self, drain_s: float | None) -> None:
        try:
            async with asyncio.timeout(drain_s):
                await self._idle.wait()
        except TimeoutError:
            if drain_s:
                logger.warning("%s is stopped with requests running", self.spec.served_name)

    def _replica_changed(self) -> None:
        if self.state is State.FAILED:
            self._failed_at = time.monotonic()
        self._on_change(self)

    async def _stop_replicas(self, grace_s: float) -> None:
        await self._replicas.stop(grace_s)
        self._reserved_bytes = self._resident_bytes = 0

    def _reason(self) -> ApiError:
        name = self.spec.served_name
        match self.state:
            case State.READY:
                return EngineDown(f"every engine of {name} fails at the moment: try again")
            case State.STOPPED | State.LOADING | State.STOPPING:
                return ModelLoading(f"{name} is loading: try again in a few seconds")
            case State.FAILED:
                return EngineDown(
                    f"{name} has failed too often and is not restarted: see the server's log",
                    retry_after_s=60,
                )
        return EngineDown(f"the engine of {name} is restarting: try again in a few seconds")

    def _change(self, state: State) -> None:
        self._state = state
        self._on_change(self)
