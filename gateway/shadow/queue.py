"""Captured replies that wait for their score: bounded, in order, and not for ever."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ShadowQueue(Generic[_T]):
    """Hands items out in order; ``on_old`` gets those that waited for more than ``max_age_s``."""

    def __init__(
        self,
        size: int,
        max_age_s: float,
        *,
        on_old: Callable[[_T], None],
        clock: Callable[[], float],
    ) -> None:
        self._size = size
        self._max_age_s = max_age_s
        self._on_old = on_old
        self._clock = clock
        self._items: deque[tuple[float, _T]] = deque()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put_nowait(self, item: _T) -> bool:
        """Add an item; return False where there is no room."""
        self.age_out()
        if len(self._items) >= self._size:
            return False
        self._items.append((self._clock(), item))
        self._news.set()
        return True

    def put_back(self, since: float, item: _T) -> None:
        """Return an item that was taken but not used to the head."""
        self._items.appendleft((since, item))
        self._news.set()

    async def get(self) -> tuple[float, _T]:
        """Wait for the oldest item and return it with the time since which it waits."""
        while True:
            self.age_out()
            if self._items:
                return self._items.popleft()
            self._news.clear()
            await self._news.wait()

    def age_out(self) -> None:
        """Give up what has waited for too long."""
        limit = self._clock() - self._max_age_s
        while self._items and self._items[0][0] < limit:
            self._on_old(self._items.popleft()[1])

    def clear(self) -> list[_T]:
        """Empty it and return what waited."""
        items = [item for _, item in self._items]
        self._items.clear()
        return items
