"""What was counted in the last minute, and when how much of it is forgotten."""

from dataclasses import dataclass

MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Window:
    """A sliding window of two counters: the older one fades while the newer one fills.

    ``previous_left_s`` is how long the older one still counts, ``current_left_s`` the newer one.
    """

    previous: int
    previous_left_s: float
    current: int
    current_left_s: float

    @property
    def count(self) -> float:
        """Return what counts now."""
        return self.previous * self.previous_left_s / MINUTE_S + self.current

    def remaining(self, limit: int) -> int:
        """Return how much of the limit is left."""
        return max(0, min(limit, limit - int(self.count)))

    def reset_s(self) -> float:
        """Return the seconds until nothing counts any more."""
        if self.current > 0:
            return self.current_left_s
        return self.previous_left_s if self.previous > 0 else 0.0

    def wait_s(self, limit: int, cost: int) -> float:
        """Return the seconds until ``cost`` fits if nothing else comes."""
        excess = self.count + cost - limit
        if excess <= 0:
            return 0.0
        faded = self.previous * self.previous_left_s / MINUTE_S
        if excess <= faded:
            return excess * MINUTE_S / self.previous
        if self.current <= 0:
            return self.previous_left_s
        # Only after the turn of the window the newer counter begins to fade.
        turn_s = max(0.0, self.current_left_s - MINUTE_S)
        return turn_s + min(1.0, (excess - faded) / self.current) * MINUTE_S
