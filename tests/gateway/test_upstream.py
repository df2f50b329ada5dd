"""The client of an engine: HTTP over real sockets, failures translated by a complete table."""

import asyncio
import contextlib
import gc
import logging
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.engine_failures import TRANSLATIONS, refusal, translate
from gateway.errors import ApiError, EngineDown, EngineFault, EngineTimeout
from gateway.shadow.releases import Releases
from gateway.transport import IDLE_S, PAUSE_BYTES, EngineTransport
from gateway.upstream import EngineClient

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run a raw TCP server; yield its base URL."""

    tasks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(answer(reader, writer)))

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # closed sockets are let go one turn later


def replying(*parts: bytes, then: float = 0.0) -> Serve:
    """Return a server that reads one request, writes ``parts``, waits and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.01)
        await asyncio.sleep(then)

    return serve


async def get(serve: Serve, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """GET / through the transport."""
    async with (
        server(serve) as url,
        httpx.AsyncClient(transport=EngineTransport(), timeout=timeout_s) as client,
    ):
        reply = await client.get(url)
        return reply.status_code, reply.content


FRAMINGS = [
    (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",),
    (b"HTTP/1.1 200 OK\r\ncontent-", b"length: 5\r\n\r\nhe", b"llo"),
    (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3", b"\r\nllo\r\n0\r\n\r\n"),
    (b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"),
    (b"HTTP/1.0 200 OK\r\n\r\nhello",),
    (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",),
]


@pytest.mark.parametrize("parts", FRAMINGS)
def test_every_framing(parts: tuple[bytes, ...]) -> None:
    """Lengths, chunks, bodies that end with the connection, and interim replies are read."""
    assert asyncio.run(get(replying(*parts))) == (200, b"hello")


@pytest.mark.parametrize("status", [204, 304])
def test_reply_without_body(status: int) -> None:
    """Statuses that have no body end at once."""
    head = b"HTTP/1.1 %d X\r\n\r\n" % status
    assert asyncio.run(get(replying(head, then=3))) == (status, b"")


BREAKS = [
    ((), httpx.ReadError),
    ((b"HTTP/1.1 200 OK\r\ncontent-len",), httpx.ReadError),
    ((b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe",), httpx.ReadError),
    ((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n",), httpx.ReadError),
    ((b"SSH-2.0-x\r\n\r\n",), httpx.RemoteProtocolError),
    (
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",),
        httpx.RemoteProtocolError,
    ),
]


@pytest.mark.parametrize(("parts", "error"), BREAKS)
def test_broken_reply(parts: tuple[bytes, ...], error: type[Exception]) -> None:
    """A reply that breaks off or is no HTTP raises; it is never taken for a short one."""
    with pytest.raises(error):
        asyncio.run(get(replying(*parts)))


@pytest.mark.parametrize("parts", [(), (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe",)])
def test_silence_is_bounded(parts: tuple[bytes, ...]) -> None:
    """Silence before or inside a reply ends in a read timeout."""
    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(get(replying(*parts, then=3), timeout_s=0.2))


def test_nobody_listens() -> None:
    """A refused connection is a connect error."""

    async def run() -> None:
        async with httpx.AsyncClient(transport=EngineTransport()) as client:
            await client.get("http://127.0.0.1:9")

    with pytest.raises(httpx.ConnectError):
        asyncio.run(run())


def test_other_schemes_are_refused() -> None:
    """The transport says so instead of guessing."""

    async def run() -> None:
        async with httpx.AsyncClient(transport=EngineTransport()) as client:
            await client.get("ftp://127.0.0.1:9")

    with pytest.raises(httpx.UnsupportedProtocol):
        asyncio.run(run())


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that only itself vouches for, and its key."""
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += [
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=engine",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ]
    words += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("is_trusted", [True, False])
def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_trusted: bool) -> None:
    """An encrypted engine is read if its certificate is trusted, else there is no connection."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    certificate, key = make_certificate(tmp_path)
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"

    async def run() -> bytes:
        async with (
            server(replying(reply, then=0.2), tls=context) as url,
            httpx.AsyncClient(transport=EngineTransport(), trust_env=False) as client,
        ):
            return (await client.get(url.replace("http:", "https:"))).content

    if is_trusted:
        assert asyncio.run(run()) == b"hello"
        return
    with pytest.raises(httpx.ConnectError, match="certificate"):
        asyncio.run(run())


def test_connections_are_reused() -> None:
    """Requests in a row use one connection; a closed or half-read one is not used again."""
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    num_connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        for _ in range(3):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(ok.replace(b": 2", b": 9") if b"/half" in head else ok)

    async def run() -> list[int]:
        counts = []
        async with (
            server(serve) as url,
            httpx.AsyncClient(transport=EngineTransport(), trust_env=False) as client,
        ):
            for _ in range(3):
                await client.get(url)
            counts.append(num_connections)
            await asyncio.sleep(0.05)  # the server has hung up
            await client.get(url)
            counts.append(num_connections)
            async with client.stream("GET", f"{url}/half"):
                pass  # left with half of the body sent
            await client.get(url)
            counts.append(num_connections)
        return counts

    assert asyncio.run(run()) == [1, 2, 3]
    assert IDLE_S < 5


def test_reading_pauses_for_a_slow_consumer() -> None:
    """What nobody reads stays with the engine, not in our memory, and no timeout strikes."""
    total = 50 * PAUSE_BYTES
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for _ in range(50):
            writer.write(b"x" * PAUSE_BYTES)
            await writer.drain()
            sent += PAUSE_BYTES

    async def run() -> tuple[int, int]:
        async with (
            server(serve) as url,
            httpx.AsyncClient(transport=EngineTransport(), timeout=0.3) as client,
            client.stream("GET", url) as reply,
        ):
            await asyncio.sleep(0.8)
            sent_unread = sent
            return sent_unread, len(await reply.aread())

    sent_unread, num_read = asyncio.run(run())
    assert sent_unread < total
    assert num_read == total


def _all(kind: type[httpx.TransportError]) -> set[type[httpx.TransportError]]:
    return {kind}.union(*(_all(child) for child in kind.__subclasses__()))


def test_translation_table_is_complete() -> None:
    """Every failure that the client library can raise has its own row, and no row is idle."""
    leaves = {kind for kind in _all(httpx.TransportError) if not kind.__subclasses__()}
    assert set(TRANSLATIONS) == leaves


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx.ConnectError("x"), EngineDown),
        (httpx.ReadError("x"), EngineDown),
        (httpx.ReadTimeout("x"), EngineTimeout),
        (httpx.RemoteProtocolError("x"), EngineFault),
    ],
)
def test_translations(error: httpx.TransportError, expected: type[ApiError]) -> None:
    """Gone, silent and broken are told apart."""
    assert type(translate(error)) is expected


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000",
        "the request exceeds the available context size, context size exceeded",
    ],
)
def test_overflow_is_recognised_by_its_words(message: str) -> None:
    """Engines without the code still give clients `context_length_exceeded`."""
    body = b'{"error": {"message": "%s", "code": 400}}' % message.encode()
    error = refusal(400, {}, body)
    assert (error.code, error.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "served_model_name"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nboom", "/engine/info answers 500: 'boom'"),
    ],
)
def test_info_that_cannot_be_read(head: bytes, words: str) -> None:
    """A description without a needed key, or none, is the engine's fault and says so."""

    async def run() -> None:
        async with server(replying(head)) as url:
            client = EngineClient(url, served_name="m@v", read_timeout_s=1)
            try:
                await client.info()
            finally:
                await client.aclose()

    with pytest.raises(EngineFault, match=words):
        asyncio.run(run())


def test_a_client_that_is_closed_says_that_the_engine_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So what comes late for a capture is no defect: nothing is raised and no error logged."""

    async def use() -> None:
        client = EngineClient("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
        await client.aclose()
        for late in (
            client.forget_capture("0"),
            client.take_capture("0"),
            client.read_rows("0", 0, 1, num_bytes=4),
        ):
            with pytest.raises(EngineDown, match="the engine is gone"):
                await late
        releases = Releases()
        releases.send(client, "0")
        await asyncio.gather(*releases._tasks)

    asyncio.run(use())
    gc.collect()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
