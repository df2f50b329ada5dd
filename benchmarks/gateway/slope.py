"""The slope of a size over time, with an interval that holds whatever the noise is."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import linear_regression, mean, stdev

NUM_PARTS = 10
_T_975 = 2.2622
"""The 97.5 % quantile of Student's t with ``NUM_PARTS - 1`` degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Slope:
    """A slope and its 95 % interval, in units of the size a second."""

    value: float
    low: float
    high: float


def slope_of(points: Sequence[tuple[float, float]]) -> Slope:
    """Return the slope of ``(seconds, size)`` points: the mean of those of ten parts in turn.

    The parts' slopes are compared with each other by Student's t (Ibragimov and Müller 2010). That
    needs no model of the noise: it holds for sizes that scatter around a level, and for sizes that
    wander, page by page, where an interval from residuals around one line is far too narrow.

    Raises:
        ValueError: there are fewer than two points for each part.
    """
    if len(points) < 2 * NUM_PARTS:
        raise ValueError(f"{len(points)} points are given: at least {2 * NUM_PARTS} are needed")
    bounds = [len(points) * part // NUM_PARTS for part in range(NUM_PARTS + 1)]
    # Each part ends with the next one's first point, or a step between two would be in none.
    slopes = [_least_squares(points[start : end + 1]) for start, end in pairwise(bounds)]
    value = mean(slopes)
    reach = _T_975 * stdev(slopes) / sqrt(NUM_PARTS)
    return Slope(value, value - reach, value + reach)


def _least_squares(points: Sequence[tuple[float, float]]) -> float:
    times, sizes = zip(*points, strict=True)
    return linear_regression(times, sizes).slope
