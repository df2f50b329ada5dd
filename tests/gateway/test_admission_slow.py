"""Clients that are slow to ask or slow to read, with real sockets."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.admission.connection import MAX_HEAD_BYTES
from tests.gateway.harness import CHAT, Gateway, body, eventually

LIMIT_S = 1.0
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with little patience."""
    settings = {
        "head_timeout_s": LIMIT_S,
        "body_timeout_s": LIMIT_S,
        "write_timeout_s": LIMIT_S,
        "request_timeout_s": 30,
    }
    gateway = Gateway(tmp_path_factory.mktemp("strict"), settings, {})
    gateway.wait_ready()
    yield gateway
    gateway.close()


def connect(gateway: Gateway, *, window: int = 65536) -> socket.socket:
    """Return a connection that takes about ``window`` bytes unread."""
    client = socket.socket()
    client.settimeout(30)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    client.connect(("127.0.0.1", gateway.port))
    return client


def read_all(client: socket.socket) -> bytes:
    """Return everything until the other side closes."""
    seen = b""
    while piece := client.recv(65536):
        seen += piece
    return seen


def is_well(client: socket.socket) -> bool:
    """Return whether a connection still answers."""
    client.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    reply = b""
    while not reply.endswith(b"}"):
        piece = client.recv(65536)
        if not piece:
            return False
        reply += piece
    return reply.startswith(b"HTTP/1.1 200 ")


def num_files(gateway: Gateway) -> int:
    """Return how many files and sockets a gateway has open."""
    return len(os.listdir(Path("/proc") / str(gateway.process.pid) / "fd"))


def test_idle_connections_are_closed(strict: Gateway) -> None:
    """200 clients that connect and say nothing do not hold up others, and are closed in time."""
    before = num_files(strict)
    with ExitStack() as stack:
        started = time.monotonic()
        clients = [stack.enter_context(connect(strict)) for _ in range(200)]
        assert strict.http.post(CHAT, json=body()).status_code == 200
        for client in clients:
            assert client.recv(1) == b""
        assert time.monotonic() - started < LIMIT_S + 8
        eventually(lambda: num_files(strict) <= before + 1)


def test_slow_heads_are_refused(strict: Gateway) -> None:
    """Headers that come in drop by drop are 408 at the limit, however steadily they come."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(strict)) for _ in range(50)]
        started = time.monotonic()
        for byte in HEAD[:8]:
            for client in clients:
                client.sendall(bytes([byte]))
        for client in clients:
            reply = read_all(client)
            assert reply.startswith(b"HTTP/1.1 408 ")
            assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        assert time.monotonic() - started < LIMIT_S + 8


def test_endless_heads_are_refused(strict: Gateway) -> None:
    """Headers without an end are 431 as soon as they are too long."""
    with connect(strict) as client:
        client.sendall(HEAD + b"x: " + b"y" * (MAX_HEAD_BYTES + 1))
        reply = read_all(client)
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00\xf8 a client that speaks TLS\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        HEAD + b"content-length: -1\r\n\r\n",
        HEAD + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n{",
        b"GET /v1/models/\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_request_is_told_so(strict: Gateway, sent: bytes) -> None:
    """Bytes that cannot be read get the envelope of all errors, and the connection is closed."""
    with connect(strict) as client:
        client.sendall(sent)
        head, _, content = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    error = json.loads(content)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")


@pytest.mark.parametrize(
    "rubbish", [b"rubbish\r\n\r\n", HEAD + b"transfer-encoding: chunked\r\n\r\nZZ\r\n"]
)
def test_rubbish_behind_a_request_is_not_answered_in_its_stream(
    strict: Gateway, rubbish: bytes
) -> None:
    """What follows a running stream and cannot be read ends it; nothing is written into it."""
    raw = json.dumps(body(stream=True, fake={"tokens": 200, "pace_s": 0.02})).encode()
    with connect(strict) as client:
        client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(raw) + raw)
        seen = b""
        while b"data: " not in seen:
            piece = client.recv(65536)
            assert piece, seen
            seen += piece
        client.sendall(rubbish)
        seen += read_all(client)
    assert seen.count(b"HTTP/1.1") == 1
    assert b"[DONE]" not in seen


def test_slow_bodies_are_refused(strict: Gateway) -> None:
    """A body that is not complete in time is 408 and counted as a timeout."""
    before = strict.metric("requests_total", outcome="timeout")
    with connect(strict) as client:
        started = time.monotonic()
        client.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        reply = read_all(client)
        assert LIMIT_S * 0.8 < time.monotonic() - started < LIMIT_S + 8
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in reply
    assert b'"code": "request_timeout"' in reply
    eventually(lambda: strict.metric("requests_total", outcome="timeout") == before + 1)


def test_a_refused_body_may_still_arrive(strict: Gateway) -> None:
    """What is left of a body after an early refusal is read and the connection goes on."""
    rest = b"x" * (32 * MAX_HEAD_BYTES)
    with connect(strict) as client:
        head = HEAD.replace(b"application/json", b"text/plain")
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(rest) + rest[:10])
        refusal = b""
        while not refusal.endswith(b"}}"):
            refusal += client.recv(65536)
        assert refusal.startswith(b"HTTP/1.1 400 ")
        client.sendall(rest[10:])
        assert is_well(client)
        client.sendall(HEAD[:9])
        assert read_all(client).startswith(b"HTTP/1.1 408 ")


def test_many_requests_on_one_connection(strict: Gateway) -> None:
    """A client that keeps its connection busy for longer than any limit is left alone."""
    until = time.monotonic() + 2 * LIMIT_S
    with connect(strict) as client:
        while time.monotonic() < until:
            assert is_well(client)
            time.sleep(LIMIT_S / 4)


def send_endless(gateway: Gateway, client: socket.socket) -> None:
    """Ask for a stream that fills every buffer on its way."""
    content = body(stream=True, fake={"tokens": 400000})
    raw = json.dumps(content | {"logprobs": True, "top_logprobs": 20}).encode()
    client.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(raw) + raw)
    eventually(lambda: gateway.engine_state()["running"] == 1)


def test_who_does_not_read_is_dropped(strict: Gateway) -> None:
    """A client that stops reading loses its connection after the limit, and the engine stops."""
    aborts = strict.metric("requests_total", outcome="client_abort")
    with connect(strict, window=4096) as client:
        started = time.monotonic()
        send_endless(strict, client)
        eventually(lambda: strict.engine_state()["running"] == 0)
        assert time.monotonic() - started > LIMIT_S
        eventually(lambda: strict.metric("requests_total", outcome="client_abort") == aborts + 1)
        eventually(lambda: strict.metric("requests_running") == 0)
        with pytest.raises(ConnectionResetError):
            read_all(client)


def test_who_reads_slowly_is_not_dropped(strict: Gateway) -> None:
    """A slow but steady reader keeps its stream."""
    with connect(strict, window=4096) as client:
        send_endless(strict, client)
        until = time.monotonic() + 4 * LIMIT_S
        while time.monotonic() < until:
            assert client.recv(4096)
            time.sleep(0.03)
        assert strict.metric("requests_running") == 1
    eventually(lambda: strict.engine_state()["running"] == 0)
