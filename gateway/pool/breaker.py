"""A circuit breaker: a replica that keeps failing is left alone for a while, then tried once."""

from dataclasses import dataclass
from enum import StrEnum


class BreakerState(StrEnum):
    """Whether requests pass."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(eq=False, slots=True)
class Trial:
    """One request that tries a replica; over when it ends, or when any request tells how it is."""

    began: float


class Breaker:
    """Opens after several failures in a row; one trial after the pause decides what follows.

    A trial that has said nothing for as long as the pause is no longer waited for: a long answer
    would keep a replica that works from all others.

    Times are seconds of any clock that never goes back; the caller brings the clock.
    """

    def __init__(self, *, max_failures: int = 3, pause_s: float = 5.0) -> None:
        self._max_failures = max_failures
        self._pause_s = pause_s
        self._num_failures = 0
        self._opened_at: float | None = None
        self._trial: Trial | None = None

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
            state is BreakerState.HALF_OPEN and not self._is_tried(now)
        )

    def enter(self, now: float) -> Trial | None:
        """Note that a request passes; return its trial if it is the one of the half-open state."""
        if self.state(now) is not BreakerState.HALF_OPEN or self._is_tried(now):
            return None
        self._trial = Trial(now)
        return self._trial

    def succeed(self) -> None:
        """Note that the replica answered."""
        self.reset()

    def fail(self, now: float) -> None:
        """Note that the replica failed a request."""
        self._num_failures += 1
        if self._num_failures >= self._max_failures:
            self._opened_at = now
        self._trial = None

    def leave(self, trial: Trial) -> None:
        """Note that a trial is over; if it said nothing of the replica another one may follow."""
        if self._trial is trial:
            self._trial = None

    def reset(self) -> None:
        """Close it: the replica is a new one, or is well again."""
        self._num_failures = 0
        self._opened_at = None
        self._trial = None

    def _is_tried(self, now: float) -> bool:
        return self._trial is not None and now - self._trial.began < self._pause_s
