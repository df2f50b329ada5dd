"""The life of one engine: started, watched, restarted; the only writer of its state."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from gateway.backends import vllm
from gateway.backends.base import Engine
from gateway.demand import Demand
from gateway.errors import ApiError, ChildFailed, SchemeMismatch, SmokeCheckFailed
from gateway.launch import Launch
from gateway.metrics.own import RestartReason
from gateway.pool.breaker import Breaker
from gateway.pool.routing import work_of
from gateway.pool.state import Patience, ReplicaSnapshot, State
from gateway.prepared import Prepared
from gateway.protocol import EngineInfo
from gateway.registry import Metrics
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

TryEngine = Callable[[EngineClient], Awaitable[None]]
"""What an engine must stand before it gets traffic."""


class Replica:
    """Keeps one engine of a variant alive and knows how much it has to do."""

    def __init__(
        self,
        spec: VariantSpec,
        index: int,
        *,
        launch: Launch,
        prepared: Prepared,
        metrics: Metrics,
        patience: Patience,
        try_engine: TryEngine,
        on_change: Callable[[], None],
    ) -> None:
        self.index = index
        self.name = spec.served_name + (f"#{index}" if spec.num_replicas > 1 else "")
        self.breaker = Breaker()
        self.num_running = 0
        self.outstanding_tokens = 0
        self.info: EngineInfo | None = None
        self.engine: Engine | None = None
        """The engine that takes requests; None while there is none."""
        self._spec = spec
        self._launch = launch
        self._prepared = prepared
        self._metrics = metrics
        self._patience = patience
        self._try_engine = try_engine
        self._on_change = on_change
        self._state = State.LOADING
        self._num_restarts = 0
        self._watch: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        """Return where the engine is in its life."""
        return self._state

    @property
    def is_trusted(self) -> bool:
        """Return whether it has not failed too many requests lately."""
        return self.breaker.allows(time.monotonic())

    async def start(self) -> None:
        """Start the engine and watch it from then on, until :meth:`stop`.

        Raises:
            StartupError: it cannot be started or is not what was asked for.
            ApiError: it does not describe itself.
        """
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._watch = asyncio.create_task(self._live(first))
        await asyncio.shield(first)

    @contextmanager
    def use(self, demand: Demand) -> Iterator[None]:
        """Count one running request, and what it has to do, while the block is open."""
        work = work_of(demand)
        self.num_running += 1
        self.outstanding_tokens += work
        trial = self.breaker.enter(time.monotonic())
        try:
            yield
        finally:
            self.outstanding_tokens -= work
            self.num_running -= 1
            if trial is not None:
                self.breaker.leave(trial)

    async def stop(self, grace_s: float) -> None:
        """End the engine, or its start; safe to repeat."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        engine, self.engine = self.engine, None
        if engine is not None:
            self._change(State.STOPPING)
            await engine.stop(grace_s)
        self._change(State.STOPPED)

    def snapshot(self) -> ReplicaSnapshot:
        """Return the replica as it is now."""
        return ReplicaSnapshot(
            index=self.index,
            state=self._state,
            breaker=self.breaker.state(time.monotonic()),
            num_running=self.num_running,
            outstanding_tokens=self.outstanding_tokens,
            num_restarts=self._num_restarts,
            url=self.engine.client.base_url if self.engine else None,
        )

    async def _start(self) -> None:
        engine = await self._launch.start(self._spec, self._prepared, self.index)
        try:
            info = self._prepared.complete(await engine.client.info())
            self._prepared.require_applied(info, rounds_at_load=engine.backend != vllm.BACKEND)
            await self._try_engine(engine.client)
        except BaseException:
            await engine.stop(0)
            raise
        self.engine, self.info = engine, info
        self.breaker.reset()
        self._change(State.READY)

    async def _live(self, first: asyncio.Future[None]) -> None:
        """Start the engine, tell how that went, and restart it whenever it is lost."""
        losses: deque[float] = deque()
        reason: RestartReason = "exit"
        try:
            await self._start_first(first)
            while self._state is not State.FAILED:
                if self.engine is not None:
                    reason = await self._until_lost(self.engine)
                await self._restart(reason, losses)
        except Exception as error:
            # The border of this task: a defect must not leave a stale state behind.
            words = " ".join(f"{type(error).__name__}: {error}".split())
            logger.exception("%s is not restarted: %s", self.name, words)
            self._change(State.FAILED)
        finally:
            first.cancel()

    async def _start_first(self, first: asyncio.Future[None]) -> None:
        try:
            await self._start()
        except Exception as error:
            # Whoever asked for the start gets it; the owners of an engine elsewhere may start it.
            self._change(State.RESTARTING if self._spec.settings.urls else State.FAILED)
            if not first.done():
                first.set_exception(error)
        else:
            if not first.done():
                first.set_result(None)

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
        self.engine = None
        self._change(State.RESTARTING)
        words = engine.last_words
        logger.error("the engine of %s was lost (%s); last log line: %s", self.name, reason, words)
        await engine.stop(0)
        return reason

    async def _until_stalled(self, engine: Engine) -> None:
        limit_s = self._patience.stall_timeout_s
        pause_s = min(self._patience.probe_every_s, limit_s / 4)
        last_healthy = time.monotonic()
        while (left_s := last_healthy + limit_s - time.monotonic()) > 0:
            if await engine.is_healthy(left_s, is_busy=self.num_running > 0):
                last_healthy = time.monotonic()
            await asyncio.sleep(pause_s)

    async def _restart(self, reason: RestartReason, losses: deque[float]) -> None:
        """Start again, with growing pauses; too many losses in the window and it has failed.

        An engine that others run is never given up: they may bring it back at any time.
        """
        patience = self._patience
        while self.engine is None:
            now = time.monotonic()
            losses.append(now)
            while now - losses[0] > patience.window_s:
                losses.popleft()
            if len(losses) > patience.max_restarts and not self._spec.settings.urls:
                self._change(State.FAILED)
                logger.error("%s was lost %d times: giving up", self.name, len(losses))
                return
            self._num_restarts += 1
            restarts = self._metrics.counters["engine_restarts_total"]
            restarts.labels(self._spec.alias, self._spec.variant, reason).inc()
            if len(losses) > 1:
                pause_s = patience.first_backoff_s * 2 ** min(len(losses) - 2, 16)
                await asyncio.sleep(min(patience.last_backoff_s, pause_s))
            try:
                await self._start()
            except (ChildFailed, SmokeCheckFailed, SchemeMismatch, ApiError) as error:
                reason = "exit"
                logger.error("restart of %s failed: %s", self.name, error)

    def _change(self, state: State) -> None:
        self._state = state
        self._on_change()
