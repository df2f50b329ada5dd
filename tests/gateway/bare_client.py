"""A client on a bare connection: it knows when each token came, and can leave in two ways."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.harness import CHAT

TEXT = b'"delta":{"content":" '
"""What an event of the fake engine has if it carries a token."""


@dataclass
class Reply:
    """What came of one request, and when; times are of the monotonic clock."""

    began: float
    status: int = 0
    headers: str = ""
    content: bytes = b""
    token_times: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def duration_s(self) -> float:
        """Return the seconds from the request to the end of its reply."""
        return self.ended - self.began


class BareClient:
    """One connection with one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer
        self.reply = Reply(time.monotonic())

    @classmethod
    async def send(
        cls, port: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> "BareClient":
        """Connect and send a chat request."""
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        raw = json.dumps(content).encode()
        every = {"host": "localhost", "content-type": "application/json", "connection": "close"}
        every |= {"content-length": str(len(raw))} | dict(headers or {})
        lines = [f"POST {CHAT} HTTP/1.1", *(f"{key}: {value}" for key, value in every.items())]
        client._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + raw)
        return client

    async def read(self, *, num_tokens: int | None = None) -> Reply:
        """Read up to the end, or until so many tokens have come."""
        reply = self.reply
        head = await self.reader.readuntil(b"\r\n\r\n")
        reply.headers = head.decode("latin-1").lower()
        reply.status = int(head.split(b" ")[1])
        while num_tokens is None or len(reply.token_times) < num_tokens:
            data = await self.reader.read(65536)
            now = time.monotonic()
            if not data:
                break
            start = max(0, len(reply.content) - len(TEXT) + 1)  # a mark may come in two pieces
            reply.content += data
            found = reply.content.count(TEXT, start)
            reply.token_times += [now] * found
            reply.ended = now
        return reply

    def leave(self, *, with_reset: bool = False) -> None:
        """Hang up, in order or with a reset."""
        link: socket.socket = self._writer.get_extra_info("socket")
        if with_reset:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        else:
            link.shutdown(socket.SHUT_RDWR)
            self._writer.close()


async def ask(
    port: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Reply:
    """Send a chat request and read its whole reply."""
    client = await BareClient.send(port, content, headers)
    try:
        return await client.read()
    finally:
        client.leave()
