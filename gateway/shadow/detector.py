"""A detector of changes for the worse, with a bound on how often it cries wolf."""

from collections.abc import Mapping, Sequence
from typing import Self

_BETS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
"""Shares of the wealth that are bet on damage: small ones find slow drifts, large ones jumps."""

_CLAMP = 1e3
"""Times the threshold: values beyond it decide nothing, and would overflow one day."""


class Detector:
    """A Shiryaev-Roberts e-detector, averaged over several bets.

    It sees each value as its ratio to the tolerance, 0 or more. While the expected ratio, given all
    that came before, is 1 at most, it takes ``threshold`` values on average to an alarm, or more,
    and an alarm within the first n has a probability of n / ``threshold`` at most.
    """

    __slots__ = ("_clamp", "_values", "threshold")

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._clamp = _CLAMP * threshold
        self._values = [0.0] * len(_BETS)

    def add(self, ratio: float) -> bool:
        """Take in one value; return whether the evidence has reached the threshold."""
        clamp = self._clamp
        gain = ratio - 1.0
        self._values = values = [
            min((value + 1.0) * (1.0 + bet * gain), clamp)
            for value, bet in zip(self._values, _BETS, strict=True)
        ]
        return sum(values) >= self.threshold * len(_BETS)

    @property
    def e_value(self) -> float:
        """Return the evidence of damage now; without any it stays below 20 for ever."""
        return sum(self._values) / len(_BETS)

    def to_state(self) -> dict[str, Sequence[float]]:
        """Return all that is known, as plain data."""
        return {"values": tuple(self._values)}

    @classmethod
    def from_state(cls, state: Mapping[str, Sequence[float]], *, threshold: float) -> Self:
        """Return the detector that :meth:`to_state` described, with this threshold.

        Raises:
            ValueError: the state is of another number of bets.
        """
        values = list(state["values"])
        if len(values) != len(_BETS):
            raise ValueError(f"the detector has {len(_BETS)} bets, the state {len(values)}")
        detector = cls(threshold)
        detector._values = [min(value, detector._clamp) for value in values]
        return detector
