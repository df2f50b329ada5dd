"""The ASGI responses of the engine: they own the answers and cancel them on leaving."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from starlette.types import Receive, Scope, Send

from gateway.engine.frames import DONE, ReplyFrames
from gateway.engine.generation import Choices
from gateway.engine.sequence import Delta
from gateway.envelope import render, sse_event
from gateway.errors import ApiError

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Cancellable(Protocol):
    """What is stopped when the client leaves."""

    def cancel(self) -> None:
        """Stop at the next step; harmless at any time."""


class PlainReply:
    """All answers as one JSON object."""

    def __init__(self, choices: Choices, frames: ReplyFrames) -> None:
        self._choices = choices
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = self._choices
        deltas: list[list[Delta]] = [[] for _ in choices.generations]
        async with cancelled_with_client(choices, receive):
            try:
                async for arrived in choices:
                    for index, delta in arrived:
                        deltas[index].append(delta)
            except ApiError as error:
                await send_error(error, send)
                return
            if any(not given or given[-1].finish_reason is None for given in deltas):
                return  # cancelled: nobody reads a reply
            body = self._frames.whole(deltas, choices)
            await send_reply(send, 200, [(b"content-type", b"application/json")], body)


class StreamedReply:
    """The answers as server-sent events, a chunk per token.

    The status waits for the first token, so that a failure until then is an HTTP error.
    """

    def __init__(self, choices: Choices, frames: ReplyFrames, *, includes_usage: bool) -> None:
        self._choices = choices
        self._frames = frames
        self._includes_usage = includes_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        choices = self._choices
        unfinished = len(choices)
        begun: set[int] = set()
        async with cancelled_with_client(choices, receive):
            try:
                async for arrived in choices:
                    if not begun:
                        await send(_start(200, STREAM_HEADERS))
                    body = self._render(arrived, begun)
                    unfinished -= sum(delta.finish_reason is not None for _, delta in arrived)
                    if not unfinished:
                        break
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except ApiError as error:
                if not begun:
                    await send_error(error, send)
                    return
                await send({"type": "http.response.body", "body": sse_event(error) + DONE})
                return
            if unfinished:
                return  # cancelled: nobody reads the stream
            if self._includes_usage:
                body += self._frames.usage(choices)
            await send({"type": "http.response.body", "body": body + DONE})

    def _render(self, arrived: list[tuple[int, Delta]], begun: set[int]) -> bytes:
        """Return the chunks of what arrived; ``begun`` holds the choices that had some before."""
        frames = self._frames
        parts: list[bytes] = []
        for index, delta in arrived:
            if index not in begun:
                begun.add(index)
                parts.append(frames.first(index, self._choices))
            parts.append(frames.delta(index, delta))
        return b"".join(parts)


@asynccontextmanager
async def cancelled_with_client(asked: Cancellable, receive: Receive) -> AsyncIterator[None]:
    """Cancel the answers when the client leaves, and in any case at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        asked.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        asked.cancel()
        watcher.cancel()


async def send_error(error: ApiError, send: Send) -> None:
    """Send an error as a reply."""
    rendered = render(error)
    headers = [(name.encode(), value.encode()) for name, value in rendered.headers.items()]
    await send_reply(send, rendered.status, headers, rendered.body)


async def send_reply(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    """Send a whole reply."""
    length = (b"content-length", str(len(body)).encode())
    await send(_start(status, [*headers, length]))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, object]:
    return {"type": "http.response.start", "status": status, "headers": headers}
