"""The interval of a slope: it holds for noise of any kind, and a leak is outside of it."""

import random
from collections.abc import Callable
from itertools import accumulate

import pytest

from benchmarks.gateway.slope import slope_of

NUM_POINTS = 240
EVERY_S = 5.0
NUM_SERIES = 300
PAGE_MB = 0.004096
LEAK_MB_PER_HOUR = 3.0
"""Some 10 bytes for each request of the soak."""

Noise = Callable[[random.Random], list[float]]


def scatter(choose: random.Random) -> list[float]:
    """Return sizes that know nothing of each other."""
    return [choose.gauss(0, 0.02) for _ in range(NUM_POINTS)]


def lasting(choose: random.Random) -> list[float]:
    """Return sizes that come back to their level within a minute."""
    level, sizes = 0.0, []
    for _ in range(NUM_POINTS):
        level = 0.9 * level + choose.gauss(0, 0.004)
        sizes.append(level)
    return sizes


def wandering(choose: random.Random) -> list[float]:
    """Return sizes that never come back."""
    return list(accumulate(choose.gauss(0, 0.004) for _ in range(NUM_POINTS)))


def pages(choose: random.Random) -> list[float]:
    """Return sizes that now and then go a page up or down."""
    steps = (choose.choice((-PAGE_MB, PAGE_MB)) for _ in range(NUM_POINTS))
    return list(accumulate(step if choose.random() < 0.06 else 0.0 for step in steps))


def points_of(sizes: list[float], slope: float = 0.0) -> list[tuple[float, float]]:
    """Return sizes with their times, on top of a slope in units a second."""
    times = [EVERY_S * index for index in range(len(sizes))]
    return [(time, 77.0 + size + slope * time) for time, size in zip(times, sizes, strict=True)]


@pytest.mark.parametrize("noise", [scatter, lasting, wandering, pages])
def test_the_interval_holds(noise: Noise) -> None:
    """Without a slope it has 0 in 19 of 20 series at least, as far as 300 can tell."""
    choose = random.Random(0)
    found = [slope_of(points_of(noise(choose))) for _ in range(NUM_SERIES)]
    num_right = sum(each.low <= 0 <= each.high for each in found)
    assert num_right >= 0.92 * NUM_SERIES  # 0.95 less two and a half standard errors


@pytest.mark.parametrize("noise", [scatter, wandering, pages])
def test_a_leak_is_seen(noise: Noise) -> None:
    """A slope that matters is told from 0, and the interval has it."""
    choose, slope = random.Random(0), LEAK_MB_PER_HOUR / 3600
    found = [slope_of(points_of(noise(choose), slope)) for _ in range(NUM_SERIES)]
    assert sum(each.low > 0 for each in found) >= 0.95 * NUM_SERIES
    assert sum(each.low <= slope <= each.high for each in found) >= 0.92 * NUM_SERIES


def test_a_step_between_two_parts_counts() -> None:
    """Wherever sizes rise, some part has it."""
    for at in range(1, NUM_POINTS):
        sizes = [0.0] * at + [1.0] * (NUM_POINTS - at)
        assert slope_of(points_of(sizes)).value > 0


def test_too_few_points_are_refused() -> None:
    """No part would have a slope."""
    with pytest.raises(ValueError, match="at least 20"):
        slope_of(points_of([0.0] * 19))
