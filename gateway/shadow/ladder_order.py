"""What an operator asks of a canary, and what became of it in the end."""

from dataclasses import dataclass
from enum import StrEnum

MAX_SHARE = 0.5
"""Most requests stay with a rung that serves already."""


@dataclass(frozen=True, slots=True)
class Terms:
    """On what a rung is tried; times are in seconds."""

    share: float
    """Of the requests for the model's plain name."""
    num_requests: int
    """Scored requests that come before it is promoted."""
    patience_s: float
    """It is rolled back when evidence has not sufficed by then."""
    beside: str = ""
    """The rung that was active when it was asked for."""


class Ending(StrEnum):
    """How an ordered canary ended."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    """It drifted, its engines broke, or evidence did not suffice in time."""
    WITHDRAWN = "withdrawn"
    """An operator ended it, or activated another rung."""
    SUPERSEDED = "superseded"
    """The ladder stepped, or an operator activated it, before it was proven."""
    FAILED = "failed"
    """It could not be loaded."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an ordered canary; times are in seconds since the epoch."""

    variant: str
    since: float
    time: float
    ending: Ending
    reason: str
