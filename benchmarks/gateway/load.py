"""Clients that cost little: each sends one streamed request on a raw socket and counts pieces."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_PIECE = re.compile(rb'"content":"[^"]')
_DONE = b"data: [DONE]"
_ERROR = b'data: {"error"'
_COUNT = re.compile(rb'"completion_tokens":(\d+)')
_TAIL_BYTES = 2048
"""Enough for the event with the usage, which stands before the last."""


@dataclass(slots=True)
class Outcome:
    """One request as its client saw it; times are in seconds from sending it."""

    status: int = 0
    first_s: float | None = None
    sent_s: float = 0.0
    """When the request was with the kernel: what is before is the client's own time."""
    total_s: float = 0.0
    tokens: int = 0
    """As the usage says, or pieces of text where the stream was cut."""
    is_whole: bool = False
    is_told: bool = False
    """An error event says why the stream ended."""
    error: str = ""


@dataclass(slots=True)
class Outcomes:
    """All requests of a run."""

    all: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Return how many pieces of text arrived."""
        return sum(each.tokens for each in self.all)

    @property
    def whole(self) -> list[Outcome]:
        """Return the requests that were answered to the end."""
        return [each for each in self.all if each.is_whole]

    def first_ms(self, share: float) -> float:
        """Return the quantile of the time to the first text, in milliseconds."""
        found = sorted(each.first_s for each in self.all if each.first_s is not None)
        return 1e3 * found[min(len(found) - 1, int(share * len(found)))]


async def ask(
    url: str,
    model: str,
    *,
    max_tokens: int,
    headers: str = "",
    more: Mapping[str, Any] | None = None,
) -> Outcome:
    """Send one request, with ``more`` fields, and read its stream to the end."""
    parts = urlsplit(url)
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": f"{time.monotonic()} tell me a story"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            **(more or {}),
        }
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    outcome = Outcome()
    started = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            writer.write(head.encode() + body)
            outcome.sent_s = time.perf_counter() - started
            await _read(reader, outcome, started)
        finally:
            writer.close()
    except (OSError, ValueError, IndexError) as error:
        outcome.error = f"{type(error).__name__}: {error}"
    outcome.total_s = time.perf_counter() - started
    return outcome


async def _read(reader: asyncio.StreamReader, outcome: Outcome, started: float) -> None:
    tail = b""
    while piece := await reader.read(65536):
        if not outcome.status:
            outcome.status = int(piece.split(b" ", 2)[1])
        num = len(_PIECE.findall(piece))
        if num and outcome.first_s is None:
            outcome.first_s = time.perf_counter() - started
        outcome.tokens += num
        tail = (tail + piece)[-_TAIL_BYTES:]
        outcome.is_told = outcome.is_told or _ERROR in tail
        if _DONE in tail:
            outcome.is_whole = not outcome.is_told
            if counts := _COUNT.findall(tail):
                outcome.tokens = int(counts[-1])
            return


async def run_streams(
    url: str,
    model: str,
    *,
    streams: int,
    rounds: int,
    tokens: int,
    more: Mapping[str, Any] | None = None,
) -> Outcomes:
    """Let ``streams`` clients send ``rounds`` requests each, one after the other."""
    found = Outcomes()

    async def client(number: int) -> None:
        await asyncio.sleep(number * 0.011)  # nobody starts all streams in one instant
        for _ in range(rounds):
            found.all.append(await ask(url, model, max_tokens=tokens, more=more))

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(streams)))
    found.seconds = time.perf_counter() - started
    return found
