"""How long a request may take: for its whole life, and until its reply begins."""

import asyncio
import math
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from gateway.errors import DeadlineExceeded, InvalidRequest

_T = TypeVar("_T")

WHOLE_HEADER = "x-request-timeout-ms"
_FIRST_HEADERS = ("x-stainless-timeout", "x-stainless-read-timeout")
"""What OpenAI's SDKs send, in seconds: how long they themselves wait for the reply to begin."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Moments of the event loop's clock, in seconds; None stands for no bound."""

    end: float | None = None
    first: float | None = None

    async def until_reply(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what ``work`` returns, if it does before the reply must have begun.

        Raises:
            DeadlineExceeded: it did not.
        """
        moments = [moment for moment in (self.end, self.first) if moment is not None]
        return await _bounded(work, min(moments, default=None))

    async def until_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what ``work`` returns, if it does before the request's time is over.

        Raises:
            DeadlineExceeded: it did not.
        """
        return await _bounded(work, self.end)


def deadline_of(headers: Mapping[str, str], limit_s: float | None, *, age_s: float) -> Deadline:
    """Return the deadline of a request that arrived ``age_s`` seconds ago.

    Raises:
        InvalidRequest: the header is no number of milliseconds.
    """
    arrived = asyncio.get_running_loop().time() - age_s
    wholes = [seconds for seconds in (limit_s, _whole_s(headers)) if seconds is not None]
    firsts = [seconds for name in _FIRST_HEADERS if (seconds := _first_s(headers.get(name)))]
    return Deadline(
        end=arrived + min(wholes) if wholes else None,
        first=arrived + min(firsts) if firsts else None,
    )


async def _bounded(work: Coroutine[Any, Any, _T], moment: float | None) -> _T:
    if moment is None:
        return await work
    timer = asyncio.timeout_at(moment)
    try:
        async with timer:
            return await work
    except TimeoutError:
        if not timer.expired():
            raise
        raise DeadlineExceeded(
            "the time for this request is over: allow more, or ask for less"
        ) from None


def _whole_s(headers: Mapping[str, str]) -> float | None:
    text = headers.get(WHOLE_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 12) or not int(text):
        raise InvalidRequest(
            f"the header {WHOLE_HEADER!r} is {text[:100]!r}: "
            "send a whole number of milliseconds of at least 1"
        )
    return int(text) / 1000


def _first_s(text: str | None) -> float | None:
    # Nobody wrote these by hand: what cannot be read bounds nothing. One SDK cuts 0.9 s to "0".
    try:
        seconds = float(text or 0)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
