"""Exact statistics of counts: Clopper-Pearson intervals and McNemar's test, without numpy."""

import math

_STEPS = 60
"""Halvings of an interval of probabilities."""
_TERMS = 500
_TINY = 1e-300


def interval(successes: int, trials: int, error: float) -> tuple[float, float]:
    """Return bounds of a probability that are both right with probability ``1 - error`` or more.

    C. J. Clopper, E. S. Pearson: The use of confidence or fiducial limits illustrated in the case
    of the binomial. Biometrika 26 (1934) 404-413.
    """
    low, high = 0.0, 1.0
    if successes:
        low = _inverse(successes, trials - successes + 1, error / 2)
    if successes < trials:
        high = _inverse(successes + 1, trials - successes, 1 - error / 2)
    return low, high


def two_sided(successes: int, trials: int) -> float:
    """Return how often a fair coin is as uneven as this, or more.

    Of discordant pairs this is the exact form of Q. McNemar: Note on the sampling error of the
    difference between correlated proportions or percentages. Psychometrika 12 (1947) 153-157.
    """
    fewer = min(successes, trials - successes)
    if 2 * fewer == trials:
        return 1.0
    # The chance of at most `fewer` is that of the beta distribution's part above one half.
    return min(1.0, 2 * _beta(trials - fewer, fewer + 1, 0.5))


def _inverse(a: int, b: int, target: float) -> float:
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _beta(a, b, middle) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta(a: int, b: int, x: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), by DLMF 8.17.22."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, 1 - x)
    log_front = (
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(x)
        + b * math.log1p(-x)
        - math.log(a)
    )
    return math.exp(log_front) / _fraction(a, b, x)


def _fraction(a: int, b: int, x: float) -> float:
    """Return the continued fraction's denominator, by Lentz's method."""
    value, numerator, denominator = 1.0, 1.0, 0.0
    for term in range(1, _TERMS):
        half = term // 2
        if term % 2:
            part = -(a + half) * (a + b + half) * x / ((a + 2 * half) * (a + 2 * half + 1))
        else:
            part = half * (b - half) * x / ((a + 2 * half - 1) * (a + 2 * half))
        denominator = 1 / (1 + part * denominator or _TINY)
        numerator = 1 + part / numerator or _TINY
        value *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-14:
            break
    return value
