"""An engine that misbehaves on the wire: each request names, in its text, how it is answered."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager

Behave = Callable[[asyncio.StreamWriter], Awaitable[None]]

NAME = "raw"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def event(text: str = "", finish: str | None = None) -> bytes:
    """Return one event of a stream."""
    delta = {"content": text} if text else {}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    fields = {"id": "1", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """Return a chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


ANSWER = event("one") + event("two") + event(finish="stop") + b"data: [DONE]\n\n"


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection with a reset instead of an end."""
    link: socket.socket = writer.get_extra_info("socket")
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class RawEngine:
    """The engine, in a thread of its own; ``num_asked`` counts requests by their text."""

    def __init__(self, behaviours: Mapping[str, Behave]) -> None:
        self.url = ""
        self.num_asked: dict[str, int] = {}
        self._behaviours = behaviours
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Listen on a free port."""
        self._thread.start()
        self._started.wait(30)

    def stop(self) -> None:
        """Hang up on everybody."""
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        self._links: set[asyncio.StreamWriter] = set()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stopping.wait()
        server.close()
        for link in self._links:
            link.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(writer)
        try:
            while not reader.at_eof():
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._links.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if head.startswith("get /engine/info"):
            writer.write(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n")
        elif head.startswith("get"):
            body = json.dumps({"data": [{"id": NAME}], "status": "ok"}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        else:
            length = int(head.partition("content-length: ")[2].split("\r\n")[0])
            fields = json.loads(await reader.readexactly(length))
            text = fields["messages"][0]["content"] if "messages" in fields else "known text"
            self.num_asked[text] = self.num_asked.get(text, 0) + 1
            if text == "known text":
                writer.write(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n")
            else:
                await self._behaviours[text](writer)
        await writer.drain()


@contextmanager
def raw_engine(behaviours: Mapping[str, Behave]) -> Iterator[RawEngine]:
    """Run one."""
    engine = RawEngine(behaviours)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
