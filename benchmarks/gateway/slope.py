"""The slope of a size over time, with an interval that knows that neighbours are alike."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

_RESAMPLES = 2000
_BLOCKS = 10


@dataclass(frozen=True, slots=True)
class Slope:
    """Least-squares slope and its 95 % interval, in units of the size a second."""

    value: float
    low: float
    high: float


def slope_of(points: Sequence[tuple[float, float]]) -> Slope:
    """Return the slope of ``(seconds, size)`` points.

    The interval is a moving-block bootstrap of the residuals (Künsch 1989): sizes of one process
    depend on those just before, and an ordinary interval would be far too narrow.
    """
    value, offset = _fit(points)
    residuals = [size - offset - value * time for time, size in points]
    block = max(1, len(points) // _BLOCKS)
    choose = random.Random(0)
    found: list[float] = []
    for _ in range(_RESAMPLES):
        drawn: list[float] = []
        while len(drawn) < len(points):
            start = choose.randrange(len(points) - block + 1)
            drawn += residuals[start : start + block]
        pairs = zip(points, drawn, strict=False)
        found.append(_fit([(time, offset + value * time + e) for (time, _), e in pairs])[0])
    found.sort()
    return Slope(value, found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1])


def _fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    times, sizes = [time for time, _ in points], [size for _, size in points]
    middle, level = mean(times), mean(sizes)
    spread = sum((time - middle) ** 2 for time in times)
    pairs = zip(times, sizes, strict=True)
    value = sum((time - middle) * (size - level) for time, size in pairs) / spread
    return value, level - value * middle
