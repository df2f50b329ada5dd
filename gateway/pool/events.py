"""What happens to models, as a stream of numbered events that many may follow."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

MAX_KEPT = 512
"""A follower that comes back within so many events misses none."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``time`` is in seconds since the epoch."""

    number: int
    kind: str
    time: float
    fields: dict[str, Any]


class EventLog:
    """Keeps the last events and wakes who follows; a slow follower loses the oldest."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=MAX_KEPT)
        self._number = 0
        self._news = asyncio.Event()

    def publish(self, kind: str, fields: dict[str, Any]) -> None:
        """Add one event."""
        self._number += 1
        self._kept.append(Event(self._number, kind, time.time(), fields))
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, after: int | None = None) -> AsyncGenerator[Event]:
        """Yield every event behind the number ``after``, for ever; None: those from now on."""
        # A number from before a restart says nothing of this log.
        seen = self._number if after is None else after if after <= self._number else 0
        while True:
            news = self._news
            for event in [each for each in self._kept if each.number > seen]:
                seen = event.number
                yield event
            if news is self._news:
                await news.wait()
