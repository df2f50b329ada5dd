"""The wire of a capture: how an engine is asked to take note of an answer, and what it noted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.errors import InvalidRequest

HEADER = "x-narrowgate-capture"
"""How many of the likeliest tokens to note at each position."""
ID_HEADER = "x-narrowgate-capture-id"
"""Under which name to keep them; a request id is the client's word, and may come twice."""
ROWS_HEADER = "x-narrowgate-capture-rows"
"""For up to how many tokens to keep the whole distributions, too."""
MAX_TOP = 64
MAX_ROWS = 1 << 20
MAX_ROWS_WAIT_S = 600.0
"""For how long an engine keeps them after the answer's numbers were taken."""

CAPTURE_ID = r"^[0-9a-f]{32}$"

_ID = re.compile(CAPTURE_ID)


@dataclass(frozen=True, slots=True)
class Wish:
    """What one request asks to be noted, and under which id."""

    capture_id: str
    num_top: int
    num_rows: int = 0
    """The longest answer whose whole distributions are to be kept; 0: of none."""


def headers_of(wish: Wish) -> dict[str, str]:
    """Return the headers that ask an engine for a capture."""
    headers = {HEADER: str(wish.num_top), ID_HEADER: wish.capture_id}
    return headers | ({ROWS_HEADER: str(wish.num_rows)} if wish.num_rows else {})


def parse_wish(headers: Mapping[str, str]) -> Wish | None:
    """Return what a request asks to be noted; None if nothing.

    Raises:
        InvalidRequest: a header has a wrong value.
    """
    count = headers.get(HEADER)
    if count is None:
        return None
    capture_id = headers.get(ID_HEADER, "")
    num_top = _number(HEADER, count, MAX_TOP)
    if not _ID.fullmatch(capture_id):
        raise InvalidRequest(
            f"the header {ID_HEADER!r} is {capture_id[:40]!r}: send 32 hexadecimal digits",
            param=ID_HEADER,
        )
    num_rows = headers.get(ROWS_HEADER)
    if num_rows is None:
        return Wish(capture_id, num_top)
    return Wish(capture_id, num_top, _number(ROWS_HEADER, num_rows, MAX_ROWS))


def _number(header: str, text: str, largest: int) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:8]) <= largest):
        raise InvalidRequest(
            f"the header {header!r} is {text[:20]!r}: send a number from 1 to {largest}",
            param=header,
        )
    return int(text)
