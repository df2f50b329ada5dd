"""The rows of another engine on their way to the step thread: fetched a few ahead of it."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from gateway.engine.scheduler import SMALL_CHUNK
from gateway.errors import ApiError, InvalidRequest
from gateway.score import LOOPBACK, ROWS_GONE, RowsAt

if TYPE_CHECKING:
    from gateway.upstream import EngineClient

ROWS_AT_ONCE = 32
"""Of one fetch; smaller than a step's, so that neither engine copies many megabytes in one go."""
_TIMEOUT_S = 10.0
"""The longest silence of the engine that keeps them."""
_DEADLINE_S = 30.0
"""Of all fetches of one score together: others wait behind it."""


class RowsGone(InvalidRequest):
    """The distributions to compare with are not there, or not any more."""

    code = ROWS_GONE

    def __init__(self) -> None:
        # Nothing of what was read: it may come from anybody who listens there.
        super().__init__(
            "'rows' cannot be read: name an answer that an engine on this machine keeps, by a "
            "model of this vocabulary",
            param="rows",
        )


class RowFeed:
    """Holds at most what one step takes, and one fetch more; the step thread never waits for it."""

    def __init__(self, where: RowsAt, count: int, vocab_size: int) -> None:
        self._where = where
        self._count = count
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._parts: deque[torch.Tensor] = deque()
        self._num_here = 0
        self._num_taken = 0
        self._events: asyncio.AbstractEventLoop | None = None
        self._room = asyncio.Event()
        self._left_s = _DEADLINE_S

    @property
    def is_ready(self) -> bool:
        """Return whether there are as many rows as any step can take; for any thread."""
        return self._num_here >= min(SMALL_CHUNK, self._count - self._num_taken)

    def take(self, count: int) -> torch.Tensor | None:
        """Return the next rows [count, vocab]; None if they are not here. In the step thread."""
        with self._lock:
            if count > self._num_here:
                return None
            found = torch.cat(list(self._parts))
            self._parts.clear()
            if count < len(found):
                self._parts.append(found[count:])
            self._num_here -= count
            self._num_taken += count
        if self._events is not None and not self._events.is_closed():
            self._events.call_soon_threadsafe(self._room.set)
        return found[:count]

    async def run(self, on_news: Callable[[], None]) -> None:
        """Fetch all rows, and say so after each part; on the event loop.

        Raises:
            RowsGone: they are not there, or do not come in time.
        """
        # Few engines fetch rows, and the HTTP client takes a tenth of a second to import.
        from gateway.upstream import EngineClient

        self._events = asyncio.get_running_loop()
        address = f"http://{LOOPBACK}:{self._where.port}"
        client = EngineClient(address, served_name="", read_timeout_s=_TIMEOUT_S)
        try:
            for start in range(0, self._count, ROWS_AT_ONCE):
                while self._num_here >= SMALL_CHUNK:
                    await self._room.wait()
                    self._room.clear()
                await self._fetch(client, start, min(start + ROWS_AT_ONCE, self._count))
                on_news()
        finally:
            await client.aclose()

    async def _fetch(self, client: "EngineClient", start: int, stop: int) -> None:
        where, begun = self._where, time.monotonic()
        try:
            async with asyncio.timeout(self._left_s):
                raw = await client.read_rows(
                    where.capture_id,
                    where.first + start,
                    where.first + stop,
                    num_bytes=4 * (stop - start) * self._vocab_size,
                )
        except (ApiError, TimeoutError):
            raise RowsGone from None
        self._left_s -= time.monotonic() - begun
        if raw is None:
            raise RowsGone
        # A copy, because what came in cannot be written to.
        rows = torch.frombuffer(bytearray(raw), dtype=torch.float32).view(-1, self._vocab_size)
        with self._lock:
            self._parts.append(rows)
            self._num_here += len(rows)
