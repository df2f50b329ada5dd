"""The wire of a capture: how an engine is asked to take note of an answer, and what it noted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import InvalidRequest

HEADER = "x-narrowgate-capture"
"""How many of the likeliest tokens to note at each position."""
ID_HEADER = "x-narrowgate-capture-id"
"""Under which name to keep them; a request id is the client's word, and may come twice."""
MAX_TOP = 64

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request asks to be noted, and under which id."""

    capture_id: str
    num_top: int


def headers_of(wish: Wish) -> dict[str, str]:
    """Return the headers that ask an engine for a capture."""
    return {HEADER: str(wish.num_top), ID_HEADER: wish.capture_id}


def parse_wish(headers: Mapping[str, str]) -> Wish | None:
    """Return what a request asks to be noted; None if nothing.

    Raises:
        InvalidRequest: a header has a wrong value.
    """
    count = headers.get(HEADER)
    if count is None:
        return None
    if not (count.isascii() and count.isdecimal() and 1 <= int(count[:4]) <= MAX_TOP):
        raise InvalidRequest(
            f"the header {HEADER!r} is {count[:20]!r}: send a number from 1 to {MAX_TOP}",
            param=HEADER,
        )
    capture_id = headers.get(ID_HEADER, "")
    if not _ID.fullmatch(capture_id):
        raise InvalidRequest(
            f"the header {ID_HEADER!r} is {capture_id[:40]!r}: send 32 hexadecimal digits",
            param=ID_HEADER,
        )
    return Wish(capture_id, int(count))
