"""What colours and words stand for: the same on every dashboard."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

GOOD, WARNING, BAD, NEUTRAL = "green", "orange", "red", "blue"
CALM = "text"
"""Of a number that nobody judges."""

_VERDICTS = (("0", "learning", NEUTRAL), ("1", "ok", GOOD), ("2", "drift", BAD))
_STALE = ("3", "stale", WARNING)

OUTCOMES: Mapping[str, str] = MappingProxyType(
    {
        "ok": GOOD,
        "error": BAD,
        "timeout": "dark-orange",
        "rejected": WARNING,
        "shed": "yellow",
        "client_abort": "purple",
    }
)
"""Colours of lines whose legend is an outcome."""

LINES: Mapping[str, str] = MappingProxyType(
    {
        "scored": GOOD,
        "candidates": NEUTRAL,
        "dropped": WARNING,
        "budget": BAD,
        "tolerance": BAD,
        "noise floor": "gray",
        "uncompressed": "gray",
    }
)
"""Colours of lines by a word in their legend."""


def verdicts() -> Json:
    """Return the mapping of a verdict's number to its word and colour."""
    words = {
        number: {"text": word, "color": colour, "index": index}
        for index, (number, word, colour) in enumerate((*_VERDICTS, _STALE))
    }
    return {"type": "value", "options": words}


def up() -> Json:
    """Return the mapping of 1 and 0 to up and down."""
    return {
        "type": "value",
        "options": {
            "0": {"text": "down", "color": BAD, "index": 0},
            "1": {"text": "up", "color": GOOD, "index": 1},
        },
    }


def none_is(text: str) -> Json:
    """Return the mapping of values that are none, and of NaN, to a text."""
    return {
        "type": "special",
        "options": {"match": "null+nan", "result": {"text": text, "index": 9}},
    }


def at_least(warning: float, good: float) -> tuple[Json, ...]:
    """Return thresholds of what is better the higher it is."""
    return (_step(None, BAD), _step(warning, WARNING), _step(good, GOOD))


def at_most(warning: float, bad: float) -> tuple[Json, ...]:
    """Return thresholds of what is better the lower it is."""
    return (_step(None, GOOD), _step(warning, WARNING), _step(bad, BAD))


def judged_by_nobody() -> tuple[Json, ...]:
    """Return the one threshold of a number that is neither good nor bad."""
    return (_step(None, CALM),)


def _step(value: float | None, colour: str) -> Json:
    return {"color": colour, "value": value}
