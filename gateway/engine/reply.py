"""The ASGI responses of a chat completion: they own the generation and cancel it on leaving."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope, Send

from gateway.engine.frames import DONE, ReplyFrames
from gateway.engine.generation import Generation
from gateway.engine.sequence import Delta
from gateway.errors import ApiError, render, sse_event

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class PlainReply:
    """The whole answer as one JSON object."""

    def __init__(self, generation: Generation, frames: ReplyFrames) -> None:
        self._generation = generation
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation = self._generation
        deltas: list[Delta] = []
        async with _cancelled_with_client(generation, receive):
            try:
                async for arrived in generation:
                    deltas.extend(arrived)
            except ApiError as error:
                await _send_error(error, send)
                return
            if not deltas or deltas[-1].finish_reason is None:
                return  # cancelled: nobody reads a reply
            body = self._frames.whole(
                deltas, generation.num_prompt_tokens, generation.num_output_tokens
            )
            await _send(send, 200, [(b"content-type", b"application/json")], body)


class StreamedReply:
    """The answer as server-sent events, a chunk per token.

    The status waits for the first token, so that a failure until then is an HTTP error.
    """

    def __init__(
        self, generation: Generation, frames: ReplyFrames, *, includes_usage: bool
    ) -> None:
        self._generation = generation
        self._frames = frames
        self._includes_usage = includes_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        generation, content = self._generation, self._frames.content
        has_started = False
        finish_reason = None
        async with _cancelled_with_client(generation, receive):
            try:
                async for arrived in generation:
                    body = b"".join(map(content, arrived))
                    finish_reason = arrived[-1].finish_reason
                    if not has_started:
                        has_started = True
                        await send(_start(200, STREAM_HEADERS))
                        body = self._frames.role() + body
                    if finish_reason is not None:
                        break
                    await send({"type": "http.response.body", "body": body, "more_body": True})
            except ApiError as error:
                if not has_started:
                    await _send_error(error, send)
                    return
                await send({"type": "http.response.body", "body": sse_event(error) + DONE})
                return
            if finish_reason is None:
                return  # cancelled: nobody reads the stream
            body += self._frames.finish(finish_reason)
            if self._includes_usage:
                body += self._frames.usage(
                    generation.num_prompt_tokens, generation.num_output_tokens
                )
            await send({"type": "http.response.body", "body": body + DONE})


@asynccontextmanager
async def _cancelled_with_client(generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """Cancel the generation when the client leaves, and in any case at the end."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        generation.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        generation.cancel()
        watcher.cancel()


async def _send_error(error: ApiError, send: Send) -> None:
    rendered = render(error)
    headers = [(name.encode(), value.encode()) for name, value in rendered.headers.items()]
    await _send(send, rendered.status, headers, rendered.body)


async def _send(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send(_start(status, [*headers, length]))
    await send({"type": "http.response.body", "body": body})


def _start(status: int, headers: list[tuple[bytes, bytes]]) -> dict[str, object]:
    return {"type": "http.response.start", "status": status, "headers": headers}
