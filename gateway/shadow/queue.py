"""Captured replies that wait for one reference: in order, and not for ever."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ShadowQueue(Generic[_T]):
    """Hands items out in order; ``on_old`` gets those that waited for more than ``max_age_s``.

    ``on_change`` is called after each change of what waits. How much may wait is not known here:
    see :class:`~gateway.shadow.queues.ShadowQueues`.
    """

    def __init__(
        self,
        max_age_s: float,
        *,
        on_old: Callable[[_T], None],
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._max_age_s = max_age_s
        self._on_old = on_old
        self._on_change = on_change
        self._clock = clock
        self._items: deque[tuple[float, _T]] = deque()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _T) -> None:
        """Add an item."""
        self._items.append((self._clock(), item))
        self._news.set()
        self._on_change()

    def put_back(self, since: float, item: _T) -> None:
        """Return an item that was taken but not used to the head."""
        self._items.appendleft((since, item))
        self._news.set()
        self._on_change()

    async def get(self) -> tuple[float, _T]:
        """Wait for the oldest item and return it with the time since which it waits."""
        while True:
            self.age_out()
            if self._items:
                taken = self._items.popleft()
                self._on_change()
                return taken
            self._news.clear()
            await self._news.wait()

    def age_out(self) -> None:
        """Give up what has waited for too long."""
        limit = self._clock() - self._max_age_s
        while self._items and self._items[0][0] < limit:
            self._on_old(self._items.popleft()[1])
            self._on_change()

    def give_up_newest(self) -> _T:
        """Take out what came last and return it.

        Raises:
            IndexError: nothing waits.
        """
        _, item = self._items.pop()
        self._on_change()
        return item

    def clear(self) -> list[_T]:
        """Empty it and return what waited."""
        items = [item for _, item in self._items]
        self._items.clear()
        self._on_change()
        return items
