"""A circuit breaker: a replica that keeps failing is left alone for a while, then tried once."""

from enum import StrEnum


class BreakerState(StrEnum):
    """Whether requests pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens after several failures in a row; one trial after the pause decides what follows.

    Times are seconds of any clock that never goes back; the caller brings the clock.
    """

    def __init__(self, *, max_failures: int = 3, pause_s: float = 5.0) -> None:
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._num_failures = 0
        self._opened_at: float | None = None
        self._is_trying = False

    def state(self, now: float) -> BreakerState:
        """Return the state at that time."""
        if self._opened_at is None:
            return BreakerState.CLOSED
        is_over = now - self._opened_at >= self._pause_s
        return BreakerState.HALF_OPEN if is_over else BreakerState.OPEN

    def allows(self, now: float) -> bool:
        """Return whether one more request may pass."""
        state = self.state(now)
        return state is BreakerState.CLOSED or (
            state is BreakerState.HALF_OPEN and not self._is_trying
        )

    def enter(self, now: float) -> bool:
        """Note that a request passes; return whether it is the trial of the half-open state."""
        if self.state(now) is not BreakerState.HALF_OPEN or self._is_trying:
            return False
        self._is_trying = True
        return True

    def succeed(self) -> None:
        """Note that the replica answered."""
        self.reset()

    def fail(self, now: float) -> None:
        """Note that the replica failed a request."""
        self._num_failures += 1
        if self._num_failures >= self._max_failures:
            self._opened_at = now
        self._is_trying = False

    def leave(self) -> None:
        """Note that the trial is over; if it said nothing of the replica another one may follow."""
        self._is_trying = False

    def reset(self) -> None:
        """Close it: the replica is a new one, or is well again."""
        self._num_failures = 0
        self._opened_at = None
        self._is_trying = False
