"""The full model of one model as a process of its own: started when needed, lost without harm."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
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
from gateway.shadow.embedded_scorer import EmbeddedScorer
from gateway.shadow.records import Scorer
from gateway.shadow.vllm_scorer import VllmScorer
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient
from gateway.wire import MAX_TOP_LOGPROBS

logger = logging.getLogger(__name__)

_MAX_FAILURES = 3
"""Scorings in a row that fail before the reference is left alone for a while."""
_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 300.0
_CONNECT_S = 10.0
_TOP = 64
"""Likeliest tokens that a vLLM of ours is asked for, so that few candidates are missed."""
_STOP_GRACE_S = 2.0
_FULL = Prepared(None, None, called=FULL)
"""Scores say nothing where the engine that gives them is compressed itself."""


class MakeScorer(Protocol):
    """Chooses how a reference is asked."""

    def __call__(self, client: EngineClient, info: EngineInfo, backend: str) -> Scorer:
        """Return what scores texts with an engine.

        Raises:
            ApiError: the engine cannot score.
        """


MakeRoom = Callable[["Reference", int], Awaitable[None]]
"""Sees to it that a reference may hold so many bytes; raises ``StartupError`` if it may not."""


def make_scorer(client: EngineClient, info: EngineInfo, backend: str) -> Scorer:
    """Return what scores texts with an engine of ours, or else as vLLM does it."""
    if info.max_capture is not None:
        return EmbeddedScorer(client)
    # Of one that others run nothing is known but vLLM's own limit.
    return VllmScorer(client, top=_TOP if backend == "vllm" else MAX_TOP_LOGPROBS)


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
        """What is set aside for it while it runs."""
        self.last_used = clock()
        self.num_users = 0
        """Who asks it now."""
        self._launch = launch
        self._metrics = metrics
        self._make_room = make_room
        self._make_scorer = make_scorer
        self._clock = clock
        self._engine: Engine | None = None
        self._scorer: Scorer | None = None
        self._starting = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None
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
        """Return what the scores are held against: the weights' source, or an address."""
        settings = self.spec.settings
        if settings.urls:
            return settings.urls[0]
        return settings.model + (f"@{settings.revision}" if settings.revision else "")

    @property
    def pause_left_s(self) -> float:
        """Return for how long it is left alone."""
        return max(0.0, self._resume_at - self._clock())

    async def scorer(self) -> Scorer:
        """Return what scores texts; starts the reference if it does not run.

        Raises:
            NarrowgateError: it cannot be started, or is left alone for now.
        """
        async with self._starting:
            if (left_s := self.pause_left_s) > 0:
                raise EngineDown(
                    f"the reference of {self.spec.alias} is left alone for {left_s:.0f} s: "
                    f"{self.last_error}"
                )
            if self._engine is None or self._scorer is None:
                try:
                    self._scorer = await self._start()
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
        try:
            yield self._engine.client
        finally:
            self.num_users -= 1
            self.last_used = self._clock()

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

    async def stop(self, grace_s: float = _STOP_GRACE_S) -> None:
        """End it; it is started again when it is needed. Safe to repeat."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        self.count_cpu()
        engine = self._forget()
        if engine is not None:
            await engine.stop(grace_s)

    def count_cpu(self) -> None:
        """Add the processor time since the last call to the metric."""
        if self._engine is not None:
            used_s = self._engine.cpu_s()
            counter = self._metrics.counters["shadow_cpu_seconds_total"].labels(self.spec.alias)
            counter.inc(max(0.0, used_s - self._cpu_s))
            self._cpu_s = used_s

    async def _start(self) -> Scorer:
        logger.info("the reference of %s starts", self.spec.alias)
        engine = await (self._reach() if self.is_elsewhere else self._launch_here())
        try:
            info = await engine.client.info()
            if self.is_elsewhere:
                _FULL.require_applied(info, rounds_at_load=True)
            scorer = self._make_scorer(engine.client, info, engine.backend)
        except BaseException:
            await engine.stop(0)
            self.num_bytes = 0
            raise
        self._engine, self._cpu_s = engine, 0.0
        self._watch = asyncio.create_task(self._watch_end(engine))
        self._metrics.gauges["shadow_reference_up"].labels(self.spec.alias).set(1)
        logger.info("the reference of %s is ready", self.spec.alias)
        return scorer

    async def _launch_here(self) -> Engine:
        prepared = await self._launch.prepare(self.spec, ignore)
        num_bytes = self._launch.memory_bytes(self.spec, prepared)
        await self._make_room(self, num_bytes)
        self.num_bytes = num_bytes
        try:
            return await self._launch.start(self.spec, prepared, 0)
        except BaseException:
            self.num_bytes = 0
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
        self._pause(f"it ended: {engine.last_words}")
        await engine.stop(0)

    def _forget(self) -> Engine | None:
        engine, self._engine, self._scorer = self._engine, None, None
        self.num_bytes = 0
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
