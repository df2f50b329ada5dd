"""What the service promises, and how fast a broken promise is noticed."""

from typing import NamedTuple

AVAILABILITY = 0.99
"""Share of the requests that are answered; what clients did wrong or gave up is not counted."""

FIRST_TOKEN_S = 2.5
"""A first token later than this is slow; a bucket's boundary, so that it is counted exactly."""

FIRST_TOKEN = 0.95
"""Share of the streams whose first token is not slow."""

MIN_EVENTS = 5
"""Fewer in the long window wake nobody: at night one failure may be half of the traffic."""


class Burn(NamedTuple):
    """Two windows, and how many times faster than allowed the budget burns in both."""

    long: str
    long_s: int
    short: str
    factor: float


# The windows of Google's SRE workbook: 2 %, 5 % and 10 % of a month's budget.
FAST = (Burn("1h", 3600, "5m", 14.4), Burn("6h", 21600, "30m", 6))
SLOW = (Burn("3d", 259200, "6h", 1),)
SHORT_WINDOWS = ("5m", "30m", "1h")
LONG_WINDOWS = ("6h", "3d")
WINDOWS = (*SHORT_WINDOWS, *LONG_WINDOWS)

# Hours and days of raw samples are much to read. Less often than every 5 minutes would not do:
# Prometheus takes a series for gone whose last sample is older.
LONG_INTERVAL = "2m"


def error_budget(objective: float) -> float:
    """Return the share that may fail."""
    return round(1 - objective, 6)
