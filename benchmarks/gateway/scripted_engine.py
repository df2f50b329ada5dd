"""An engine of fixed speed: ``python -m benchmarks.gateway.scripted_engine --port N``.

It streams ``max_tokens`` tokens, one every ``--pace-ms``, and costs as little processor time as
Python can, so that what stands before it is measured and not the engine.
"""

import argparse
import asyncio
import re
from typing import cast

import uvloop

NAME = "scripted"
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_BASE = b'{"id":"chatcmpl-1","created":1,"model":"scripted","object":"chat.completion.chunk",'
_ROLE = b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
_TEXT = b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,'
_END = b'"choices":[{"index":0,"delta":{},"logprobs":null,'


def _event(choices: bytes) -> bytes:
    data = b"data: " + _BASE + choices + b"}\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


_ROLE_EVENT = _event(_ROLE + b'"finish_reason":null}],"usage":null')
_TEXT_EVENT = _event(_TEXT + b'"finish_reason":null}],"usage":null')
_END_EVENT = _event(_END + b'"finish_reason":"length"}],"usage":null')


class Connection(asyncio.Protocol):
    """One client; requests come one after the other."""

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s
        self._buffer = b""
        self._left = 0
        self._total = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop at once."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Answer a request as soon as it is whole."""
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        size = int(length[1]) if length else 0
        if separator and len(rest) >= size:
            self._buffer = rest[size:]
            self._answer(head, rest[:size])

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path == b"/v1/chat/completions":
            found = _MAX_TOKENS.search(body)
            self._left = self._total = int(found[1]) if found else 16
            self._write(_HEAD + _ROLE_EVENT)
            self._due = asyncio.get_running_loop().time()
            self._next()
        elif path == b"/engine/info":
            self._write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        else:
            card = b'{"object":"list","data":[{"id":"scripted","object":"model"}],"status":"ok"}'
            kind = b"content-type: application/json\r\n"
            self._write(
                b"HTTP/1.1 200 OK\r\n%scontent-length: %d\r\n\r\n%s" % (kind, len(card), card)
            )

    def _next(self) -> None:
        if self._left:
            self._left -= 1
            self._write(_TEXT_EVENT)
            self._due += self._pace_s
            self._timer = asyncio.get_running_loop().call_at(self._due, self._next)
            return
        counts = b'"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}'
        usage = _event(b'"choices":[],' + counts % (self._total, self._total + 9))
        self._write(_END_EVENT + usage + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace-ms", type=float, default=50.0)
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    pace_s = options.pace_ms / 1e3
    server = await loop.create_server(
        lambda: Connection(pace_s), "127.0.0.1", options.port, backlog=1024
    )
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
