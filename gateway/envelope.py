"""The one renderer of OpenAI's error envelope: an error as a reply, or at the end of a stream.

Free of any web framework: ``gateway.engine`` renders the same errors.
"""

import json
from typing import Any, NamedTuple

from gateway.errors import ApiError

MAX_RETRY_AFTER_S = 120
"""The official client ignores longer waits and gives up."""


class RenderedError(NamedTuple):
    """An error as a reply: status, extra headers (lower case) and a JSON body."""

    status: int
    headers: dict[str, str]
    body: bytes


def envelope(error: ApiError) -> dict[str, dict[str, Any]]:
    """Return OpenAI's error object; all four keys are always there."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def render(error: ApiError) -> RenderedError:
    """Return the reply for an error: status, headers (when to retry, and whether), body."""
    should_retry = "true" if error.should_retry else "false"
    headers = {
        "content-type": "application/json",
        "x-should-retry": should_retry,
        **error.headers,
    }
    if error.retry_after_s is not None:
        seconds = min(MAX_RETRY_AFTER_S, max(1, round(error.retry_after_s)))
        headers["retry-after"] = str(seconds)
    # ASCII escapes keep the body valid UTF-8 whatever a message quotes.
    return RenderedError(error.status, headers, json.dumps(envelope(error)).encode())


def sse_event(error: ApiError) -> bytes:
    """Return the error as one server-sent event, as it ends a broken stream."""
    return b"data: " + json.dumps(envelope(error)).encode() + b"\n\n"
