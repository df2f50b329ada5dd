"""The text of a reply as the client got it, read after the reply has ended; never kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

MAX_BYTES = 1024 * 1024
"""Of one reply; what is longer is not read."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call: the function's name, and its arguments as the model wrote them."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of a reply."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    finish_reason: str = ""


class ReplyBytes:
    """Takes the bytes of a reply as they pass, as far as there is room."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def take(self, part: bytes) -> None:
        """Keep one part."""
        self._num_bytes += len(part)
        if self._num_bytes <= MAX_BYTES:
            self._parts.append(part)
        else:
            self._parts.clear()

    def read(self) -> Answer | None:
        """Return the answer, and forget the bytes; None where they are too many or no answer."""
        raw = b"".join(self._parts)
        self._parts.clear()
        if not raw:
            return None
        is_plain = raw.lstrip().startswith(b"{")
        try:
            replies = [orjson.loads(raw)] if is_plain else list(_events(raw))
            return answer_of(replies)
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            return None


def _events(raw: bytes) -> Iterable[Any]:
    for line in raw.splitlines():
        if line.startswith(b"data:") and (data := line[len(b"data:") :].strip()) != b"[DONE]":
            yield orjson.loads(data)


def answer_of(replies: Iterable[Mapping[str, Any]]) -> Answer:
    """Return the answer of a plain reply, or of all events of a stream.

    Raises:
        LookupError, TypeError, AttributeError: they are no replies.
    """
    texts: list[str] = []
    calls: dict[int, list[str]] = {}
    reason = ""
    for reply in replies:
        for choice in reply.get("choices") or ():
            message = choice.get("message") or choice.get("delta") or {}
            texts.append(message.get("content") or choice.get("text") or "")
            reason = choice.get("finish_reason") or reason
            for place, call in enumerate(message.get("tool_calls") or ()):
                function = call.get("function") or {}
                parts = calls.setdefault(call.get("index", place), ["", ""])
                parts[0] += function.get("name") or ""
                parts[1] += function.get("arguments") or ""
    found = tuple(ToolCall(name, arguments) for name, arguments in calls.values())
    return Answer("".join(texts), found, reason)
