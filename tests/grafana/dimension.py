"""Units as powers of what is counted, and which of them a panel's unit can show."""

from collections.abc import Mapping
from typing import NamedTuple

from gateway.metrics.family import Unit
from grafana import units

OBSERVATIONS = "observations"
"""Of a histogram's buckets and count."""

_PURE: frozenset[Unit] = frozenset({"ratio", "state", "count"})
_THINGS = ("requests", "tokens", OBSERVATIONS)
"""Means are told in the unit of what is averaged: seconds of a request are seconds."""


class Dimension(NamedTuple):
    """A product of powers, sorted by unit; the empty one is a pure number."""

    powers: tuple[tuple[str, int], ...] = ()

    def times(self, other: "Dimension", sign: int = 1) -> "Dimension":
        """Return the dimension of a product, or with ``sign`` -1 of a quotient."""
        powers = dict(self.powers)
        for unit, power in other.powers:
            powers[unit] = powers.get(unit, 0) + sign * power
        return _from(powers)

    def averaged(self) -> "Dimension":
        """Return the dimension without what it is a mean over."""
        powers = dict(self.powers)
        return _from({u: n for u, n in powers.items() if not (u in _THINGS and n < 0)})

    def root(self) -> "Dimension":
        """Return the dimension of a square root.

        Raises:
            ValueError: it is the square of nothing.
        """
        if any(power % 2 for _, power in self.powers):
            raise ValueError(f"the root of {self}")
        return _from({unit: power // 2 for unit, power in self.powers})

    def __str__(self) -> str:
        return " ".join(f"{unit}^{power}" for unit, power in self.powers) or "1"


def of(unit: Unit) -> Dimension:
    """Return the dimension of a metric's unit."""
    if unit == "nats squared":
        return _from({"nats": 2})
    return Dimension() if unit in _PURE else _from({unit: 1})


def _from(powers: Mapping[str, int]) -> Dimension:
    return Dimension(tuple(sorted((unit, power) for unit, power in powers.items() if power)))


PURE = Dimension()
SECONDS = _from({"seconds": 1})
OBSERVED = _from({OBSERVATIONS: 1})
_PER_SECOND = _from({"seconds": -1})


def _each_second(thing: str) -> Dimension:
    return _from({thing: 1, "seconds": -1})


SHOWN: Mapping[str, tuple[Dimension, ...]] = {
    units.SECONDS: (SECONDS,),
    units.BYTES: (of("bytes"),),
    units.SHARE: (PURE,),
    units.COUNT: (PURE, of("requests"), OBSERVED),
    units.BITS: (of("bytes"),),
    units.TIMES: (PURE,),
    units.NATS: (of("nats"),),
    units.TOKENS: (of("tokens"),),
    units.REQUESTS: (of("requests"),),
    units.TOKENS_PER_SECOND: (_each_second("tokens"), _each_second(OBSERVATIONS)),
    units.REQUESTS_PER_SECOND: (_each_second("requests"), _each_second(OBSERVATIONS)),
    units.EVENTS_PER_SECOND: (_PER_SECOND, _each_second("requests")),
    units.CORES: (PURE,),
    units.STATE: (PURE,),
}
"""What each unit of a panel may be the unit of."""
