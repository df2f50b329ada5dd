"""Replies that have ended, on the way to what their engines noted of them: one after another."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial

from gateway.shadow.candidate import Candidate

MAX_COLLECTING = 64
"""Replies that wait or are fetched at once."""
FETCH_AFTER_S = 0.05
"""A client that asks again does so right after a reply, and is served first."""
APART_S = 0.004
"""Replies that end together are fetched at some distance."""


class Collecting:
    """Has ``collect`` called for each reply that has ended, a little later; bounded."""

    def __init__(self, collect: Callable[[Candidate], Awaitable[None]]) -> None:
        self._collect = collect
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_at = 0.0

    def begin(self, candidate: Candidate) -> None:
        """Take a reply, or drop it where there is no room."""
        if len(self._tasks) >= MAX_COLLECTING:
            candidate.drop("queue_full")
            return
        loop = asyncio.get_running_loop()
        at = max(loop.time() + FETCH_AFTER_S, self._next_at)
        self._next_at = at + APART_S
        # In a context of its own: nothing of it belongs to the request's span or log lines.
        task = loop.create_task(self._collect_at(at, candidate), context=Context())
        self._tasks.add(task)
        task.add_done_callback(partial(self._collected, candidate))

    async def settle(self) -> None:
        """Wait until the replies that have ended are queued or dropped."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Drop what is under way."""
        for task in self._tasks:
            task.cancel()
        await self.settle()

    async def _collect_at(self, at: float, candidate: Candidate) -> None:
        await asyncio.sleep(at - asyncio.get_running_loop().time())
        await self._collect(candidate)

    def _collected(self, candidate: Candidate, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            candidate.drop("stopped")
