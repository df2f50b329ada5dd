"""Engines with an OpenAI server: started on a free port, asked over HTTP."""

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.engines.children import EngineFailed, child, last_words, pss_mb
from benchmarks.engines.replies import Replies

NAME = "m"
START_LIMIT_S = 600.0
ANSWER_LIMIT_S = 600.0
# Whoever parsed the streams would share the processors with what is measured.
_CHOICE = re.compile(rb'"choices": ?\[\{')
_COUNT = re.compile(rb'"completion_tokens": ?(\d+)')
_DONE = b"data: [DONE]"
_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    port: int
    process: psutil.Process
    more: Mapping[str, Any]
    """Fields of a request that only this server needs."""
    where = "HTTP"

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> Replies:
        """Ask for all prompts at once.

        Raises:
            EngineFailed: an answer is an error, broken off or of another length.
        """
        try:
            firsts, lasts = asyncio.run(self._ask_all(prompts, tokens))
        except (OSError, TimeoutError) as error:
            raise EngineFailed(f"{type(error).__name__}: {error}") from error
        return Replies(firsts[0], max(lasts), tokens, len(prompts))

    def memory_mb(self) -> float:
        """Return what it and its children hold."""
        return pss_mb(self.process)

    async def _ask_all(
        self, prompts: Sequence[Sequence[int]], tokens: int
    ) -> tuple[list[float], list[float]]:
        async with asyncio.timeout(ANSWER_LIMIT_S):
            bodies = [self._request(prompt, tokens) for prompt in prompts]
            started = time.perf_counter()
            asked = [_ask(self.port, body, tokens, started) for body in bodies]
            times = await asyncio.gather(*asked)
        return [first for first, _ in times], [last for _, last in times]

    def _request(self, prompt: Sequence[int], tokens: int) -> bytes:
        fields = {
            "model": NAME,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self.more,
        }
        body = json.dumps(fields).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        return head.encode() + body


class StreamedAnswer:
    """One answer as its stream arrives: when its tokens came, and whether it is whole.

    A token is seen by the piece of the stream that carries a choice, with text or without: half a
    character has none yet. Times are in seconds.
    """

    # Whoever parsed the stream would share the processors with what is measured.

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._last_s = 0.0
        self._tail = b""

    def take(self, piece: bytes, now_s: float) -> None:
        """Take what arrived at a moment."""
        if _CHOICE.search(piece):
            self._last_s = now_s
            if self._first_s is None:
                self._first_s = now_s
        self._tail = (self._tail + piece)[-_TAIL_BYTES:]

    @property
    def is_over(self) -> bool:
        """Return whether the server has said that nothing follows."""
        return _DONE in self._tail

    def times(self, tokens: int) -> tuple[float, float]:
        """Return when the first and the last of so many tokens came.

        Raises:
            EngineFailed: it is an error, broken off or of another length.
        """
        counts = _COUNT.findall(self._tail)
        is_other = bool(counts) and int(counts[-1]) != tokens
        if self._first_s is None or not self.is_over or is_other:
            raise EngineFailed(f"no answer of {tokens} tokens: {self._tail[-300:]!r}")
        return self._first_s, self._last_s


async def _ask(port: int, request: bytes, tokens: int, started: float) -> tuple[float, float]:
    """Return the seconds to the first and to the last token of one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = StreamedAnswer()
    try:
        writer.write(request)
        while piece := await reader.read(65536):
            answer.take(piece, time.perf_counter() - started)
            if answer.is_over:
                break
    finally:
        writer.close()
    return answer.times(tokens)


@contextmanager
def server(
    command: Sequence[str],
    port: int,
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Iterator[Server]:
    """Run a server until it is ready, then as long as it is needed.

    Raises:
        EngineFailed: it ended, or was not ready in time.
    """
    with child(command, log, environment=environment) as process:
        _wait(process, port, log)
        yield Server(port, psutil.Process(process.pid), more or {})


def _wait(process: "subprocess.Popen[str]", port: int, log: Path) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise EngineFailed(last_words(log, process.returncode))
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            time.sleep(0.1)
    raise EngineFailed(f"not ready after {START_LIMIT_S:.0f} s")
