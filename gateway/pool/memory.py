"""Who stays in memory: room for a load under the budget, and an end to idleness."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from gateway.errors import NoMemory
from gateway.pool import policy
from gateway.pool.gauges import record_state
from gateway.pool.state import Patience
from gateway.pool.variant import Variant
from gateway.registry import Metrics

logger = logging.getLogger(__name__)

TEND_EVERY_S = 0.5
MEASURE_EVERY_S = 5.0


class Memory:
    """Stops variants that nobody uses, when the budget asks for it or their time is over."""

    def __init__(
        self,
        variants: Callable[[], Iterable[Variant]],
        budget: int | None,
        *,
        metrics: Metrics,
        patience: Patience,
    ) -> None:
        self._variants = variants
        self._budget = budget
        self._metrics = metrics
        self._patience = patience
        self._line = asyncio.Lock()
        self._news = asyncio.Event()
        self._held_bytes = 0
        if budget is not None:
            metrics.gauges["memory_budget_bytes"].set(budget)

    def tell(self) -> None:
        """Wake whoever waits for room: something may have changed for it."""
        news, self._news = self._news, asyncio.Event()
        news.set()

    def free_bytes(self, kept: Variant) -> int | None:
        """Return what could be had beside a variant that stays; None: there is no limit."""
        if self._budget is None:
            return None
        staying = [
            each.num_bytes
            for each in self._residents().values()
            if each is kept or each.resident().is_in_use or each.resident().is_pinned
        ]
        return max(0, self._budget - self._held_bytes - sum(staying))

    def unused_bytes(self) -> int | None:
        """Return what is free while everything that is loaded stays; None: there is no limit."""
        if self._budget is None:
            return None
        loaded = sum(each.num_bytes for each in self._residents().values())
        return max(0, self._budget - self._held_bytes - loaded)

    @contextmanager
    def hold(self, num_bytes: int, name: str) -> Iterator[None]:
        """Set memory aside for other work while the block is open; nobody is stopped for it.

        Raises:
            NoMemory: so much is not free.
        """
        unused = self.unused_bytes()
        if unused is not None and num_bytes > unused:
            raise NoMemory(
                f"{name} needs {num_bytes} bytes, and {unused} of the memory budget are free: "
                "unload a variant, or raise 'memory_budget'"
            )
        self._held_bytes += num_bytes
        try:
            yield
        finally:
            self._held_bytes -= num_bytes
            self.tell()

    async def make_room(self, variant: Variant, need: int) -> None:
        """Reserve ``need`` bytes for a variant; others stop for it, or it waits until they can.

        Raises:
            NoMemory: it is more than the budget, or nothing became idle in time.
        """
        budget = self._budget
        if budget is None:
            variant.reserve(need)
            return
        name = variant.spec.served_name
        if need > budget:
            raise NoMemory(
                f"{name} needs {need} bytes, the memory budget is {budget}: raise "
                "'memory_budget', or lower 'kv_cache_memory_bytes' or 'replicas'"
            )
        until = asyncio.get_running_loop().time() + self._patience.load_wait_s
        # Loads wait in line, so that a large one is not starved by small ones.
        await self._in_time(self._line.acquire(), until, name)
        try:
            # Somebody may begin to use a victim while another one stops, so look again.
            while (victims := self._victims(need, budget - self._held_bytes)) != []:
                if victims is None:
                    await self._in_time(self._news.wait(), until, name)
                for victim in victims or ():
                    await self._evict(victim, "memory")
            variant.reserve(need)
        finally:
            self._line.release()

    async def tend(self) -> None:
        """Stop, for ever, whoever has been idle for longer than its keep-alive time."""
        measured_at = -float("inf")
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            if time.monotonic() - measured_at >= MEASURE_EVERY_S:
                measured_at = time.monotonic()
                for variant in self._residents().values():
                    await variant.measure()
                    record_state(self._metrics, variant.snapshot())
            residents = self._residents()
            idle = [variant.resident() for variant in residents.values()]
            for name in policy.idle_too_long(idle, time.monotonic()):
                await self._evict(residents[name], "idle")

    @staticmethod
    async def _in_time(work: Coroutine[Any, Any, object], until: float, name: str) -> None:
        try:
            async with asyncio.timeout_at(until):
                await work
        except TimeoutError:
            raise NoMemory(
                f"the memory budget has no room for {name}: what is loaded is in use or pinned"
            ) from None

    def _victims(self, need: int, budget: int) -> list[Variant] | None:
        residents = self._residents()
        named = policy.evictions(
            [each.resident() for each in residents.values()], need=need, budget=budget
        )
        return None if named is None else [residents[name] for name in named]

    def _residents(self) -> dict[str, Variant]:
        return {each.spec.served_name: each for each in self._variants() if each.is_resident}

    async def _evict(self, variant: Variant, reason: str) -> None:
        logger.info("%s is stopped (%s)", variant.spec.served_name, reason)
        evictions = self._metrics.counters["evictions_total"]
        evictions.labels(variant.spec.alias, variant.spec.variant, reason).inc()
        await variant.stop_if_idle(self._patience.stop_grace_s)
