"""Which unit gets which scheme: a pure choice from a table of costs and sizes.

The multiple-choice knapsack by Lagrange multipliers (Everett 1963): for each price of a byte every
unit takes the option of least cost plus price. What that gives is the lower convex hull of all
choices, and each point of it is best for its own size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """One way to store one unit."""

    scheme: str
    num_bytes: int
    cost: float
    """Expected KL divergence in nats that it adds."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """A choice for every unit."""

    choices: Mapping[str, Option]

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all units."""
        return sum(option.num_bytes for option in self.choices.values())

    @property
    def cost(self) -> float:
        """Return the expected KL divergence, taken as additive."""
        return sum(option.cost for option in self.choices.values())


def frontier(table: Mapping[str, Sequence[Option]]) -> list[Allocation]:
    """Return the allocations on the lower convex hull, from the smallest to the most faithful.

    Raises:
        ValueError: a unit has no option.
    """
    hulls = _hulls(table)
    current = {unit: hull[0] for unit, hull in hulls.items()}
    points = [Allocation(dict(current))]
    for unit, index in _steps(hulls):
        current[unit] = hulls[unit][index + 1]
        points.append(Allocation(dict(current)))
    return points


def most_faithful(table: Mapping[str, Sequence[Option]], num_bytes: int) -> Allocation:
    """Return an allocation of at most ``num_bytes``, or the smallest where that takes more.

    It is the hull's last point that fits, and in the bytes that are left what saves most a byte.

    Raises:
        ValueError: a unit has no option.
    """
    hulls = _hulls(table)
    current = {unit: hull[0] for unit, hull in hulls.items()}
    left = num_bytes - Allocation(current).num_bytes
    for unit, index in _steps(hulls):
        small, large = hulls[unit][index : index + 2]
        # A unit whose last step did not fit stays where it is.
        if current[unit] is small and large.num_bytes - small.num_bytes <= left:
            current[unit] = large
            left -= large.num_bytes - small.num_bytes
    return Allocation(current)


def _hulls(table: Mapping[str, Sequence[Option]]) -> dict[str, list[Option]]:
    return {unit: _hull(options) for unit, options in table.items()}


def _steps(hulls: Mapping[str, Sequence[Option]]) -> list[tuple[str, int]]:
    """Return every step ``(unit, index)`` up a unit's hull, that which saves most a byte first."""
    steps = sorted(
        (
            (_slope(hull[index], hull[index + 1]), index, unit)
            for unit, hull in hulls.items()
            for index in range(len(hull) - 1)
        ),
        key=lambda step: (step[0], step[1]),
    )
    return [(unit, index) for _, index, unit in steps]


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the options that some price of a byte makes best, from the smallest on."""
    if not options:
        raise ValueError("a unit without options cannot be stored")
    hull: list[Option] = []
    for option in sorted(options, key=lambda each: (each.num_bytes, each.cost)):
        if hull and option.cost >= hull[-1].cost:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(small: Option, large: Option) -> float:
    """Return the cost saved per byte added, negative: the steepest saving comes first."""
    return (large.cost - small.cost) / (large.num_bytes - small.num_bytes)
