"""Where rates are counted: in Redis for all gateways while it answers, else in this process."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.storage.redis.redispy import RedispyBridge
from limits.errors import ConfigurationError

from gateway.admission.window import MINUTE_S, Window
from gateway.errors import SettingsError

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 0.5
RETRY_AFTER_S = 5.0
"""How long Redis is left alone after a failure, so that not every request waits for it."""

_BOUNDLESS = 2**52
_Storage = MemoryStorage | RedisStorage
_T = TypeVar("_T")


class RateStore:
    """Counters of sliding windows of one minute, by name."""

    def __init__(self, redis_url: str | None, *, on_failure: Callable[[], None]) -> None:
        """Connect to nothing yet.

        Raises:
            SettingsError: the client of Redis is not installed, or cannot read the URL.
        """
        self._local = MemoryStorage()
        self._remote = _redis(redis_url) if redis_url else None
        self._failures = _failures(self._remote)
        self._on_failure = on_failure
        self._is_down = False
        self._retry_at = 0.0

    async def take(self, name: str, *, limit: int, cost: int) -> bool:
        """Count ``cost`` if the limit allows it; return whether it did."""
        return await self._ask(
            lambda storage: storage.acquire_sliding_window_entry(name, limit, MINUTE_S, cost)
        )

    async def correct(self, name: str, difference: int) -> None:
        """Add to a count beyond any limit, or take back what still counts in this window."""
        if difference < 0:
            current = (await self.window(name)).current
            difference = -min(-difference, max(0, current))
        if difference:
            await self.take(name, limit=_BOUNDLESS, cost=difference)

    async def window(self, name: str) -> Window:
        """Return what is counted now."""
        return Window(*await self._ask(lambda storage: storage.get_sliding_window(name, MINUTE_S)))

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._remote is not None and isinstance(self._remote.bridge, RedispyBridge):
            await self._remote.bridge.storage.aclose()

    async def _ask(self, question: Callable[[_Storage], Awaitable[_T]]) -> _T:
        if self._remote is not None and time.monotonic() >= self._retry_at:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await question(self._remote)
            except self._failures as error:
                self._fail(error)
            else:
                self._recover()
                return answer
        return await question(self._local)

    def _fail(self, error: BaseException) -> None:
        self._retry_at = time.monotonic() + RETRY_AFTER_S
        self._on_failure()
        if not self._is_down:
            self._is_down = True
            reason = str(error) or type(error).__name__
            logger.warning("Redis does not answer (%s): rates are counted here alone", reason)

    def _recover(self) -> None:
        if self._is_down:
            self._is_down = False
            logger.warning("Redis answers again: rates are counted for all gateways")


def _redis(url: str) -> RedisStorage:
    try:
        return RedisStorage(f"async+{url}", implementation="redispy", key_prefix="narrowgate")
    except ConfigurationError:
        raise SettingsError(
            "setting 'redis_url' needs the client of Redis: pip install 'narrowgate[redis]'"
        ) from None
    except ValueError:
        raise SettingsError("setting 'redis_url' is no URL of a Redis: correct it") from None


def _failures(storage: RedisStorage | None) -> tuple[type[Exception], ...]:
    if storage is None:
        return ()
    found = storage.base_exceptions
    return (OSError, TimeoutError, *(found if isinstance(found, tuple) else (found,)))
