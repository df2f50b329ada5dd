"""A confidence sequence: bounds for a mean that hold at all times at once."""

import math
from collections.abc import Mapping
from typing import Self

_BETS = tuple(0.95 / 1.5**k for k in range(16))
"""How fast evidence counts. The smallest is the best one after about a hundred million values."""

_COSTS = tuple(-math.log1p(-bet) - bet for bet in _BETS)
"""What scatter costs each bet."""

_PAIRS = tuple(zip(_BETS, _COSTS, strict=True))


class ConfidenceSequence:
    """Bounds for the mean of values from 0 to 1, whoever looks and however often.

    The mean is that of the values' conditional expectations so far, so they may depend on each
    other and change in time. ``guess`` is what a value is expected to be before any came: a good
    one makes the first bounds tighter, a bad one does not make them wrong.
    """

    __slots__ = ("guess", "n", "scatter", "total")

    def __init__(self, *, guess: float = 0.5) -> None:
        self.guess = guess
        self.n = 0
        self.total = 0.0
        self.scatter = 0.0
        """The sum of squared distances of each value from the mean of those before it."""

    def add(self, value: float) -> None:
        """Take in one value, from 0 to 1."""
        surprise = value - (self.guess + self.total) / (self.n + 1)
        self.scatter += surprise * surprise
        self.total += value
        self.n += 1

    @property
    def mean(self) -> float:
        """Return the mean of the values; the guess where there are none."""
        return self.total / self.n if self.n else self.guess

    def is_below(self, limit: float, *, error: float) -> bool:
        """Return whether the mean is below ``limit``; wrong at any time with ``error`` at most."""
        return self._is_evidence(self.n * limit - self.total, error)

    def is_above(self, limit: float, *, error: float) -> bool:
        """Return whether the mean is above ``limit``; wrong at any time with ``error`` at most."""
        return self._is_evidence(self.total - self.n * limit, error)

    def bounds(self, *, error: float) -> tuple[float, float]:
        """Return the lower and the upper bound; each is wrong with ``error`` at most."""
        if not self.n:
            return 0.0, 1.0
        half = self._margin(error) / self.n
        return max(0.0, self.mean - half), min(1.0, self.mean + half)

    def to_state(self) -> dict[str, float]:
        """Return all that is known, as plain data."""
        return {
            "n": self.n,
            "total": self.total,
            "scatter": self.scatter,
            "guess": self.guess,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> Self:
        """Return the sequence that :meth:`to_state` described."""
        sequence = cls(guess=state["guess"])
        sequence.n = int(state["n"])
        sequence.total = state["total"]
        sequence.scatter = state["scatter"]
        return sequence

    def _is_evidence(self, excess: float, error: float) -> bool:
        if excess <= 0:
            return False
        return self._log_wealth(excess)[0] > -math.log(error)

    def _log_wealth(self, excess: float) -> tuple[float, float]:
        """Return the logarithm of the bets' mean wealth, and its slope, at this excess."""
        powers = [bet * excess - cost * self.scatter for bet, cost in _PAIRS]
        top = max(powers)
        weights = [math.exp(power - top) for power in powers]
        total = sum(weights)
        slope = sum(bet * weight for bet, weight in zip(_BETS, weights, strict=True)) / total
        return top + math.log(total / len(_BETS)), slope

    def _margin(self, error: float) -> float:
        """Return the excess at which evidence begins; Newton's method from above, on a convex."""
        goal = -math.log(error)
        needed = goal + math.log(len(_BETS))
        margin = min((needed + cost * self.scatter) / bet for bet, cost in _PAIRS)
        for _ in range(20):
            wealth, slope = self._log_wealth(margin)
            step = (wealth - goal) / slope
            margin -= step
            if step < 1e-9 * margin:
                break
        return margin
