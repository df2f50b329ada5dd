"""Work beside requests: done while they leave room for it, broken off when they come."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gateway.shadow.references import References

_T = TypeVar("_T")

POLL_S = 0.02
"""How soon work notices that requests have come."""


class Yielded(Exception):
    """Requests came while something was asked of a reference."""


class Yielding:
    """Knows when a model's reference may work.

    ``max_running`` requests may run meanwhile; None: none beside a reference here, any beside one
    elsewhere.
    """

    def __init__(
        self, references: References, num_busy: Callable[[], int], *, max_running: int | None
    ) -> None:
        self._references = references
        self._num_busy = num_busy
        self._max_running = max_running

    def is_idle(self, model: str) -> bool:
        """Return whether requests leave room for work on a model's replies."""
        limit = self._max_running
        if limit is None:
            limit = None if self._references.of(model).is_elsewhere else 0
        return limit is None or self._num_busy() <= limit

    async def wait_idle(self, model: str, until: float, meanwhile: Callable[[], None]) -> bool:
        """Wait until requests leave room; return False if they do not ``until`` (monotonic)."""
        while not self.is_idle(model):
            if time.monotonic() > until:
                return False
            await asyncio.sleep(POLL_S)
            meanwhile()
        return True

    async def unless_busy(self, model: str, work: Awaitable[_T], *, timeout_s: float) -> _T:
        """Return what ``work`` gives, unless requests come before.

        Raises:
            Yielded: they came.
            TimeoutError: it took too long.
        """
        task = asyncio.ensure_future(work)
        try:
            async with asyncio.timeout(timeout_s):
                while not task.done():
                    await asyncio.wait({task}, timeout=POLL_S)
                    if not task.done() and not self.is_idle(model):
                        raise Yielded
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
