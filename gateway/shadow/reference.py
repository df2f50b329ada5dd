"""The full model of one model as a process of its own: started when needed, lost without harm."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Protocol

from compression.events import ignore
from compression.recipe import FULL
from gateway.backends.base import Engine
from gateway.errors import EngineDown, NarrowgateError, StartupError
from gateway.launch import Launch
from gateway.prepared import Prepared
from gateway.protocol import EngineInfo
from gateway.registry import Metrics
from gateway.shadow.monitor_state import identified
from gateway.shadow.records import Scorer
from gateway.shadow.reference_memory import NoRoom
from gateway.shadow.scorers import MakeScorer, make_scorer
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
"""Scorings in a row that fail before the reference is left alone for a while."""
_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 300.0
_CONNECT_S = 10.0
STOP_GRACE_S = 2.0
_FULL = Prepared(None, None, called=FULL)
"""Scores say nothing where the engine that gives them is compressed itself."""


class MakeRoom(Protocol):
    """Sets memory aside for a reference."""

    async def __call__(self, claimant: "Reference", num_bytes: int, *, may_evict: bool) -> None:
        """Let it hold so many bytes, which it has from then on.

        Raises:
            NoRoom: others hold them now; where it may evict, all the time.
            StartupError: nobody may hold so many.
        """


class Reference:
    """Starts the reference and leaves it alone after failures, longer each time."""

    def __init__(
        self,
        spec: VariantSpec,
        launch: Launch,
        *,
        metrics: Metrics,
        make_room: MakeRoom,
        make_scorer: MakeScorer = make_scorer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self.num_bytes = 0
        """What is set aside for it, until its process has ended."""
        self.needed_bytes: int | None = None
        """What it took or wanted at last; None: it was never prepared."""
        self.last_used = clock()
        self.num_users = 0
        """How many ask it now."""
        self._unused = asyncio.Event()
        self._unused.set()
        self._launch = launch
        self._metrics = metrics
        self._make_room = make_room
        self._make_scorer = make_scorer
        self._clock = clock
        self._engine: Engine | None = None
        self._scorer: Scorer | None = None
        self._starting = asyncio.Lock()
        self._stopping = asyncio.Lock()
        self._making_way: set[asyncio.Timeout] = set()
        self._watch: asyncio.Task[None] | None = None
        self._weights: str | None = None
        self._num_failures = 0
        self._resume_at = -float("inf")
        self._cpu_s = 0.0
        self.last_error: str | None = None
        metrics.gauges["shadow_reference_up"].labels(spec.alias).set(0)

    @property
    def is_elsewhere(self) -> bool:
        """Return whether others run it."""
        return bool(self.spec.settings.urls)

    @property
    def is_running(self) -> bool:
        """Return whether it takes texts."""
        return self._engine is not None

    @property
    def is_starting(self) -> bool:
        """Return whether it is about to take texts; not while it ends."""
        is_ending = self._stopping.locked()
        return self._engine is None and self._starting.locked() and not is_ending

    @property
    def state(self) -> str:
        """Return ``ready``, ``starting``, ``paused`` after failures, or ``stopped``."""
        if self._clock() < self._resume_at:
            return "paused"
        if self._engine is not None:
            return "ready"
        return "starting" if self._starting.locked() else "stopped"

    @property
    def url(self) -> str | None:
        """Return where it runs."""
        return None if self._engine is None else self._engine.client.base_url

    @property
    def identity(self) -> str:
        """Return what the scores are held against: the weights' source, or an address.

        Once it has run, a digest of its weights follows; of one elsewhere, of what it tells.
        """
        settings = self.spec.settings
        name = settings.model + (f"@{settings.revision}" if settings.revision else "")
        return identified(settings.urls[0] if settings.urls else name, self._weights)

    @property
    def pause_left_s(self) -> float:
        """Return for how long it is left alone."""
        return max(0.0, self._resume_at - self._clock())

    async def scorer(self, *, may_evict: bool = True) -> Scorer:
        """Return what scores texts; starts the reference if it does not run.

        ``may_evict``: it may have another one ended, and wait for that, where room is short.

        Raises:
            NarrowgateError: it cannot be started, has no room, or is left alone for now.
        """
        async with self._starting:
            if (left_s := self.pause_left_s) > 0:
                raise EngineDown(
                    f"the reference of {self.spec.alias} is left alone for {left_s:.0f} s: "
                    f"{self.last_error}"
                )
            if self._engine is None or self._scorer is None:
                try:
                    self._scorer = await self._start(may_evict=may_evict)
                except NoRoom as error:
                    self.last_error = str(error)  # which is no fault of its own
                    raise
                except NarrowgateError as error:
                    self._pause(str(error))
                    raise
            self.last_used = self._clock()
            return self._scorer

    @contextmanager
    def using(self) -> Iterator[EngineClient]:
        """Hand out its client; while the block is open it is not ended for idleness or room.

        Raises:
            EngineDown: it does not run.
        """
        if self._engine is None:
            raise EngineDown(f"the reference of {self.spec.alias} does not run")
        self.num_users += 1
        self._unused.clear()
        try:
            yield self._engine.client
        finally:
            self.num_users -= 1
            self.last_used = self._clock()
            if not self.num_users:
                self._unused.set()

    def succeed(self) -> None:
        """Note that a text was scored."""
        self._num_failures = 0
        self.last_used = self._clock()
        self.count_cpu()

    def fail(self, words: str) -> None:
        """Note that a scoring failed; after several it is left alone."""
        self.count_cpu()
        if self._num_failures + 1 >= _MAX_FAILURES:
            self._pause(words)
        else:
            self._count_failure(words)

    async def suspect(self) -> None:
        """Note that a text took too long; if it does not say either that it is well, end it."""
        engine = self._engine
        if engine is not None and not await engine.client.is_healthy():
            self._pause("it does not answer")
            await self.stop(0)
        else:
            self.fail("it took too long for a text")

    async def make_way(self, wait_s: float, grace_s: float = 0.0) -> None:
        """End it once nobody asks it; who wants to ask it meanwhile waits until it has ended.

        Returns as soon as it holds no memory, whoever ended it: the next one to start it waits for
        its own room, perhaps behind the one who waits here.

        Raises:
            TimeoutError: it is asked, or starts, for longer than ``wait_s``.
        """
        async with AsyncExitStack() as stack:
            waiting = asyncio.timeout(wait_s)
            try:
                async with waiting:
                    self._making_way.add(waiting)
                    await stack.enter_async_context(self._starting)
                    await self._unused.wait()
            except TimeoutError:
                if self.num_bytes:
                    raise
                return
            finally:
                self._making_way.discard(waiting)
            await self.stop(grace_s)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End it; it is started again when it is needed. Safe to repeat."""
        async with self._stopping:
            if self._watch is not None:
                self._watch.cancel()
                await asyncio.gather(self._watch, return_exceptions=True)
            self.count_cpu()
            engine = self._forget()
            if engine is not None:
                await engine.stop(grace_s)
                self._let_go()

    def count_cpu(self) -> None:
        """Add the processor time since the last call to the metric."""
        if self._engine is not None:
            used_s = self._engine.cpu_s()
            counter = self._metrics.counters["shadow_cpu_seconds_total"].labels(self.spec.alias)
            counter.inc(max(0.0, used_s - self._cpu_s))
            self._cpu_s = used_s

    async def _start(self, *, may_evict: bool) -> Scorer:
        async with self._stopping:
            pass  # the one before has ended
        logger.info("the reference of %s starts", self.spec.alias)
        engine = await (self._reach() if self.is_elsewhere else self._launch_here(may_evict))
        try:
            info = await engine.client.info()
            if self.is_elsewhere:
                _FULL.require_applied(info, rounds_at_load=True)
            scorer = self._make_scorer(engine.client, info, engine.backend)
        except BaseException:
            await engine.stop(0)
            self._let_go()
            raise
        self._engine, self._cpu_s = engine, 0.0
        if self.is_elsewhere:
            self._weights = _told(info)
        self._watch = asyncio.create_task(self._watch_end(engine))
        self._metrics.gauges["shadow_reference_up"].labels(self.spec.alias).set(1)
        logger.info("the reference of %s is ready", self.spec.alias)
        return scorer

    async def _launch_here(self, may_evict: bool) -> Engine:
        prepared = await self._launch.prepare(self.spec, ignore)
        self._weights = prepared.digest
        self.needed_bytes = self._launch.memory_bytes(self.spec, prepared)
        await self._make_room(self, self.needed_bytes, may_evict=may_evict)
        self.last_used = self._clock()
        try:
            return await self._launch.start(self.spec, prepared, 0)
        except BaseException:
            self._let_go()
            raise

    async def _reach(self) -> Engine:
        (url,) = self.spec.settings.urls
        client = EngineClient(url, served_name="", read_timeout_s=_CONNECT_S)
        try:
            names = await client.served_names()
        finally:
            await client.aclose()
        if not names:
            raise EngineDown(f"the reference at {url} serves no model")
        there = self.spec.settings.model_copy(update={"model": names[0]})
        try:
            async with asyncio.timeout(_CONNECT_S):
                spec = replace(self.spec, settings=there)
                return await self._launch.start(spec, Prepared(None, None), 0)
        except TimeoutError:
            raise StartupError(f"the reference at {url} is not well") from None

    async def _watch_end(self, engine: Engine) -> None:
        await engine.wait()
        self._forget()
        self._let_go()
        self._pause(f"it ended: {engine.last_words}")
        await engine.stop(0)

    def _let_go(self) -> None:
        """Hold no memory, and tell those that wait for it."""
        self.num_bytes = 0
        for waiting in self._making_way:
            if not waiting.expired():
                waiting.reschedule(asyncio.get_running_loop().time())

    def _forget(self) -> Engine | None:
        engine, self._engine, self._scorer = self._engine, None, None
        self._metrics.gauges["shadow_reference_up"].labels(self.spec.alias).set(0)
        return engine

    def _pause(self, words: str) -> None:
        self._count_failure(words)
        pause_s = min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._num_failures - 1, 16))
        self._resume_at = self._clock() + pause_s
        logger.warning(
            "the reference of %s is left alone for %.0f s: %s", self.spec.alias, pause_s, words
        )

    def _count_failure(self, words: str) -> None:
        self._num_failures += 1
        self.last_error = words
        self._metrics.counters["shadow_reference_failures_total"].labels(self.spec.alias).inc()


def _told(info: EngineInfo) -> str:
    """Return a digest of what an engine elsewhere says of its weights."""
    told = (info.served_model_name, info.architecture, info.dtype, info.weights_bytes)
    return hashlib.sha256(repr(told).encode()).hexdigest()
