"""Numbers as reports show them."""

import math
from collections.abc import Sequence

_MB = 1e6


def megabytes(size_bytes: int) -> str:
    """Return decimal megabytes, with one decimal below 100."""
    size = size_bytes / _MB
    return f"{size:.1f}" if size < 100 else f"{size:,.0f}"


def significant(value: float, *, decimals: int = 0) -> str:
    """Return three significant digits, and at least so many decimals below 100."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -3 or exponent > 4:
        return f"{value:.1e}"
    return f"{value:.{max(decimals if exponent < 2 else 0, 2 - exponent)}f}"


def with_interval(value: float, interval: Sequence[float], *, decimals: int = 0) -> str:
    """Return the value and half of its 95 % interval, relative to it."""
    if value == 0:
        return "0"
    percent = 50 * (interval[1] - interval[0]) / value
    return f"{significant(value, decimals=decimals)} ±{percent:.{1 if percent < 0.95 else 0}f}%"


def share(value: float, interval: Sequence[float]) -> str:
    """Return a share of 1 in percent and half of its 95 % interval."""
    return f"{100 * value:.1f} ±{50 * (interval[1] - interval[0]):.1f}"
