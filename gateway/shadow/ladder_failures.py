"""Which rungs of a ladder cannot be loaded now, and for how long they are passed over."""

from collections.abc import Set

from gateway.pool.pool import Pool
from gateway.pool.state import State


class Failures:
    """One model's rungs that could not be loaded; times are in seconds since the epoch."""

    def __init__(self, model: str, pool: Pool) -> None:
        self._model = model
        self._pool = pool
        self._until: dict[str, float] = {}

    def add(self, rung: str, *, until: float) -> None:
        """Remember that a rung could not be loaded."""
        self._until[rung] = until

    def until(self, rung: str) -> float:
        """Return when a rung may be tried again; 0: at any time."""
        return self._until.get(rung, 0.0)

    @property
    def last_until(self) -> float:
        """Return when all may be tried again; 0: at any time."""
        return max(self._until.values(), default=0.0)

    def look(self, now: float) -> Set[str]:
        """Return who cannot be loaded now; a rung that is there has failed no longer.

        One that still ends its requests would keep whoever wants it waiting.
        """
        states = {
            rung: self._pool.find(f"{self._model}@{rung}").state
            for rung in self._pool.shape(self._model).ladder
        }
        self._until = {
            rung: end
            for rung, end in self._until.items()
            if now < end and states.get(rung) is not State.READY
        }
        return {rung for rung, state in states.items() if state is State.STOPPING} | set(
            self._until
        )
