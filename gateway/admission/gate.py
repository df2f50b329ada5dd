"""Turns at one model: a bounded number of requests run, the rest wait, fairly between keys."""

import asyncio
import time
from collections import OrderedDict, deque

from gateway.envelope import MAX_RETRY_AFTER_S

_WEIGHT = 0.2
"""Of the newest request in the running mean of how long one holds its place."""


class Ticket:
    """One request's place, in the queue or at the engine, until it is given back."""

    def __init__(self, gate: "Gate", key: str) -> None:
        self._gate = gate
        self._started: float | None = None
        self.key = key
        self._turn = asyncio.Event()

    @property
    def is_running(self) -> bool:
        """Return whether the request may pass."""
        return self._turn.is_set()

    async def wait(self) -> None:
        """Wait for the request's turn."""
        await self._turn.wait()

    def admit(self) -> None:
        """Let the request pass; only the gate calls this."""
        self._started = time.monotonic()
        self._turn.set()

    def give_back(self) -> None:
        """Leave the engine or the queue."""
        held_s = None if self._started is None else time.monotonic() - self._started
        self._gate.release(self, held_s)


class Gate:
    """Gives out tickets; waiting keys take turns, and one key's requests keep their order."""

    def __init__(self, max_running: int, max_queued: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._num_running = 0
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._mean_held_s = 0.0

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait."""
        return sum(map(len, self._queues.values()))

    @property
    def has_room(self) -> bool:
        """Return whether a request would run at once."""
        return self._num_running < self._max_running

    @property
    def is_full(self) -> bool:
        """Return whether a request could neither run nor wait."""
        return not self.has_room and self.num_waiting >= self._max_queued

    @property
    def retry_after_s(self) -> float:
        """Return about how long a request would wait that came now."""
        estimate = (self.num_waiting + 1) * self._mean_held_s / self._max_running
        return min(MAX_RETRY_AFTER_S, max(1.0, estimate))

    def join(self, key: str) -> Ticket:
        """Return a ticket; it runs at once if there is room."""
        ticket = Ticket(self, key)
        if self.has_room:
            self._num_running += 1
            ticket.admit()
        else:
            self._queues.setdefault(key, deque()).append(ticket)
        return ticket

    def release(self, ticket: Ticket, held_s: float | None) -> None:
        """Take a ticket back; ``held_s`` is how long it ran, None if it only waited."""
        if held_s is None:
            queue = self._queues[ticket.key]
            queue.remove(ticket)
            if not queue:
                del self._queues[ticket.key]
            return
        mean_s = self._mean_held_s
        self._mean_held_s = held_s if not mean_s else mean_s + _WEIGHT * (held_s - mean_s)
        if not self._queues:
            self._num_running -= 1
            return
        # The place goes to the key whose turn it is; then that key is the last in line.
        key, queue = self._queues.popitem(last=False)
        queue.popleft().admit()
        if queue:
            self._queues[key] = queue
