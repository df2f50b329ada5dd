"""HTTP/1.1 to an engine: an httpx transport on asyncio and httptools, made for cheap streams.

httpx's own transport spends about 95 microseconds of CPU on each streamed token, this one about a
quarter of that (figures in DESIGN.md).
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Protocol, cast

import httptools
import httpx

PAUSE_BYTES = 256 * 1024
"""Unread bytes of one reply at which reading from the engine pauses."""

IDLE_S = 2.0
"""Idle connections are closed before common servers (uvicorn: 5 s) would close them on us."""

READ = "narrowgate_read"
"""Response extension: reads the body without httpx's five generators, a third of the cost."""

Header = tuple[bytes, bytes]
Read = Callable[[], Coroutine[Any, Any, bytes]]


class _Parser(Protocol):
    """The part of httptools' parser that we use; the library ships no complete types."""

    def feed_data(self, data: bytes) -> None: ...
    def get_status_code(self) -> int: ...
    def should_keep_alive(self) -> bool: ...


class _Connection(asyncio.Protocol):
    """One connection with at most one exchange at a time; also httptools' callback target."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._socket: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._begin(None)

    def _begin(self, timeout_s: float | None) -> None:
        self._parser = cast(_Parser, httptools.HttpResponseParser(self))
        self._headers: list[Header] = []
        self._chunks: list[bytes] = []
        self._num_unread = 0
        self._has_head = False
        self.has_heard = False
        """Whether any byte of the reply has come."""
        self._is_framed = False
        self._is_complete = False
        self._keeps_alive = False
        self._is_paused = False
        self._failure: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timeout_s = timeout_s
        self._last_seen = self._loop.time()

    # What the transport does with it.

    @property
    def is_closed(self) -> bool:
        """Return whether no further exchange can run here."""
        return self._socket is None or self._socket.is_closing()

    @property
    def is_reusable(self) -> bool:
        """Return whether the exchange ended cleanly and the peer keeps the connection."""
        return self._is_complete and self._keeps_alive and not self.is_closed

    async def exchange(self, message: bytes, timeout_s: float | None) -> tuple[int, list[Header]]:
        """Send one request and return status and headers of the reply."""
        self._begin(timeout_s)
        if self._socket is None:
            raise httpx.WriteError("the connection is closed")
        self._socket.write(message)
        if timeout_s is not None:
            self._timer = self._loop.call_later(timeout_s, self._check_silence)
        while not self._has_head:
            await self._wait()
        return self._parser.get_status_code(), self._headers

    async def read(self) -> bytes:
        """Return all body bytes that have arrived, waiting for some; empty at the end."""
        while not self._chunks:
            if self._is_complete:
                return b""
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._num_unread = 0
        if self._is_paused and self._socket is not None:
            self._is_paused = False
            self._last_seen = self._loop.time()
            self._socket.resume_reading()
        return data

    def close(self) -> None:
        """Drop the connection at once; this is what tells an engine to stop decoding."""
        self._stop_timer()
        if self._socket is not None:
            self._socket.abort()

    def break_off(self) -> None:
        """Drop the connection and fail whoever reads from it."""
        if not self._is_complete:
            self._fail(httpx.ReadError("the connection was closed here"))
        self.close()
        self._wake()

    def rest(self) -> None:
        """End the exchange but keep the connection."""
        self._stop_timer()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._last_seen = self._loop.time()
        self.has_heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(httpx.RemoteProtocolError(f"not HTTP: {error}"))
            self.close()
        if self._num_unread > PAUSE_BYTES and not self._is_paused and self._socket is not None:
            self._is_paused = True
            self._socket.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._socket = None
        self._stop_timer()
        if self._has_head and not self._is_framed and not exc:
            self._is_complete = True  # a body without a length ends with its connection
        if not self._is_complete:
            reason = f": {exc}" if exc else ""
            self._fail(httpx.ReadError(f"the connection was closed{reason}"))
        self._wake()

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._is_framed = True

    def on_headers_complete(self) -> None:
        self._has_head = self._parser.get_status_code() >= 200
        if not self._has_head:
            self._headers.clear()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._num_unread += len(body)

    def on_message_complete(self) -> None:
        self._is_complete = self._has_head
        self._keeps_alive = self._parser.should_keep_alive()  # only known inside this call

    # Waiting

    async def _wait(self) -> None:
        self._raise_failure()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if not self._chunks:
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: httpx.TransportError) -> None:
        if self._failure is None:
            self._failure = failure

    def _check_silence(self) -> None:
        # One timer for the whole exchange, moved on only when it fires: a timer per token costs.
        if self._timeout_s is None or self._is_complete:
            return
        silent_s = 0.0 if self._is_paused else self._loop.time() - self._last_seen
        if silent_s >= self._timeout_s:
            self._fail(httpx.ReadTimeout(f"silent for {self._timeout_s:g} s"))
            self.close()
            self._wake()
            return
        self._timer = self._loop.call_later(self._timeout_s - silent_s, self._check_silence)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Body(httpx.AsyncByteStream):
    """Body of one reply; closing it early drops the connection."""

    def __init__(self, connection: _Connection, home: "EngineTransport", origin: "_Origin") -> None:
        self._connection = connection
        self._home = home
        self._origin = origin

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while data := await self._connection.read():
            yield data

    def read(self) -> Coroutine[Any, Any, bytes]:
        """Return what has arrived, waiting for some; empty at the end."""
        return self._connection.read()

    async def aclose(self) -> None:
        self._home.take_back(self._connection, self._origin)


_Origin = tuple[str, int, bool]
"""Host, port, and whether the connection is encrypted."""


class EngineTransport(httpx.AsyncBaseTransport):
    """Keeps idle connections by origin and opens new ones without a limit.

    ``https://`` trusts the system's authorities, or those of the variable ``SSL_CERT_FILE``.
    """

    def __init__(self) -> None:
        self._idle: dict[_Origin, list[tuple[_Connection, float]]] = {}
        self._busy: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its reply with an unread body.

        Raises:
            httpx.TransportError: the connection failed, broke, or stayed silent.
        """
        origin = _origin(request.url)
        timeouts = request.extensions.get("timeout", {})
        message = _head(request) + await request.aread()
        connection = self._reuse(origin)
        reply: tuple[int, list[Header]] | None = None
        if connection is not None:
            try:
                reply = await self._exchange(connection, message, timeouts)
            except httpx.ReadError:
                # Closed by the peer while it lay idle: that says nothing of the request.
                if connection.has_heard:
                    raise
        if connection is None or reply is None:
            connection = await self._connect(origin, timeouts.get("connect"))
            reply = await self._exchange(connection, message, timeouts)
        status, headers = reply
        body = _Body(connection, self, origin)
        return httpx.Response(status, headers=headers, stream=body, extensions={READ: body.read})

    async def _exchange(
        self, connection: _Connection, message: bytes, timeouts: Mapping[str, Any]
    ) -> tuple[int, list[Header]]:
        self._busy.add(connection)
        try:
            return await connection.exchange(message, timeouts.get("read"))
        except BaseException:
            self._busy.discard(connection)
            connection.close()
            raise

    def take_back(self, connection: _Connection, origin: _Origin) -> None:
        """Keep a connection whose exchange ended cleanly, close any other."""
        self._busy.discard(connection)
        if not connection.is_reusable:
            connection.close()
            return
        connection.rest()
        now = asyncio.get_running_loop().time()
        self._idle.setdefault(origin, []).append((connection, now + IDLE_S))

    async def aclose(self) -> None:
        """Close all connections; who reads from one is told."""
        for busy in list(self._busy):
            busy.break_off()
        for connections in self._idle.values():
            for connection, _ in connections:
                connection.close()
        self._idle.clear()

    def _reuse(self, origin: _Origin) -> _Connection | None:
        connections = self._idle.get(origin, [])
        now = asyncio.get_running_loop().time()
        while connections:
            connection, until = connections.pop()
            if not connection.is_closed and now < until:
                return connection
            connection.close()
        return None

    async def _connect(self, origin: _Origin, timeout_s: float | None) -> _Connection:
        host, port, is_encrypted = origin
        loop = asyncio.get_running_loop()
        if is_encrypted and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop), host, port, ssl=self._tls if is_encrypted else None
                )
        except TimeoutError:
            raise httpx.ConnectTimeout(f"no connection within {timeout_s:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(str(error)) from None
        return connection


def _origin(url: httpx.URL) -> _Origin:
    if url.scheme not in {"http", "https"}:
        raise httpx.UnsupportedProtocol(f"{url.scheme}:// is not supported here")
    is_encrypted = url.scheme == "https"
    return url.host, url.port or (443 if is_encrypted else 80), is_encrypted


def _head(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n"
