"""The queues of all references: one for each, and one bound over all that waits."""

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from gateway.shadow.queue import ShadowQueue

_T = TypeVar("_T")


class ShadowQueues(Generic[_T]):
    """Keeps ``size`` items together; where there is no room the longest queue gives up its newest.

    So a reference that answers nothing may fill all the room while nobody else wants it, and no
    other one is kept out by it. ``on_full`` gets what is given up, ``on_old`` what waited for more
    than ``max_age_s``, ``on_length`` the number of all that wait whenever it changes.
    """

    def __init__(
        self,
        names: Iterable[str],
        size: int,
        max_age_s: float,
        *,
        on_old: Callable[[_T], None],
        on_full: Callable[[_T], None],
        on_length: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self._size = size
        self._on_full = on_full
        self._on_length = on_length
        self._queues: dict[str, ShadowQueue[_T]] = {
            name: ShadowQueue(max_age_s, on_old=on_old, on_change=self._tell, clock=clock)
            for name in names
        }

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def of(self, name: str) -> ShadowQueue[_T]:
        """Return the queue of one reference."""
        return self._queues[name]

    def has_room(self, name: str) -> bool:
        """Return whether an item would be kept: there is room, or a longer queue to take it of."""
        self.age_out()
        return len(self) < self._size or len(self._longest()) > len(self._queues[name])

    def put(self, name: str, item: _T) -> None:
        """Add an item for one reference."""
        if len(self) >= self._size:
            self._on_full(self._longest().give_up_newest())
        self._queues[name].put(item)

    def age_out(self) -> None:
        """Give up what has waited for too long, for whichever reference."""
        for queue in self._queues.values():
            queue.age_out()

    def clear(self) -> list[_T]:
        """Empty all and return what waited."""
        return [item for queue in self._queues.values() for item in queue.clear()]

    def _longest(self) -> ShadowQueue[_T]:
        return max(self._queues.values(), key=len)

    def _tell(self) -> None:
        self._on_length(len(self))
