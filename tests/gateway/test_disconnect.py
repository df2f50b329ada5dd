"""A client that leaves stops the engine's work, whenever it leaves."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.gateway.harness import CHAT, Gateway, body, eventually

NEVER = {"tokens": 4000, "pace_s": 0.01}


@contextmanager
def open_request(
    gateway: Gateway, content: dict[str, Any], *, after: bytes
) -> Iterator[socket.socket]:
    """Send a request, and wait for ``after`` in the reply or for the engine."""
    raw = json.dumps(content).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        client.sendall(head.encode() + raw)
        if after:
            seen = b""
            while after not in seen:
                received = client.recv(65536)
                assert received, seen
                seen += received
        else:
            eventually(lambda: gateway.engine_state()["running"] == 1)
        yield client


def leave_early(gateway: Gateway, content: dict[str, Any], *, after: bytes) -> None:
    """Send a request, wait for ``after`` in the reply or for the engine, and hang up."""
    with open_request(gateway, content, after=after):
        pass


CASES = [
    pytest.param(True, {}, b"aad", "decode", id="stream, decoding"),
    pytest.param(True, {"first_s": 60}, b"assistant", "prefill", id="stream, prefill"),
    pytest.param(True, {"head_s": 60}, b"", "prefill", id="stream, before the first byte"),
    pytest.param(False, {}, b"", "_other", id="plain"),
    pytest.param(False, {"head_s": 60}, b"", "_other", id="plain, prefill"),
]


@pytest.mark.parametrize(("stream", "fake", "after", "phase"), CASES)
def test_leaving_stops_the_engine(
    gateway: Gateway, stream: bool, fake: dict[str, Any], after: bytes, phase: str
) -> None:
    """The engine stops at once, the running gauge falls, and the request is counted as left."""
    cancelled = gateway.engine_state()["cancelled"]
    left = gateway.metric("client_disconnects_total", model="tiny", phase=phase)
    aborts = gateway.metric("requests_total", outcome="client_abort", finish_reason="abort")
    leave_early(gateway, body(stream=stream, fake=NEVER | fake), after=after)
    eventually(lambda: gateway.engine_state()["cancelled"] == cancelled + 1)
    eventually(lambda: gateway.metric("requests_running") == 0)
    assert gateway.metric("client_disconnects_total", model="tiny", phase=phase) == left + 1
    now = gateway.metric("requests_total", outcome="client_abort", finish_reason="abort")
    assert now == aborts + 1


@pytest.mark.parametrize(("stream", "fake", "after", "phase"), CASES)
def test_half_closing_is_leaving(
    gateway: Gateway, stream: bool, fake: dict[str, Any], after: bytes, phase: str
) -> None:
    """A client that ends its own side cannot be told from one that left: no more is decoded."""
    cancelled = gateway.engine_state()["cancelled"]
    left = gateway.metric("client_disconnects_total", model="tiny", phase=phase)
    with open_request(gateway, body(stream=stream, fake=NEVER | fake), after=after) as client:
        client.shutdown(socket.SHUT_WR)
        client.settimeout(30)
        while client.recv(65536):
            pass  # what was on its way; then the gateway closes its side, too
    eventually(lambda: gateway.engine_state()["cancelled"] == cancelled + 1)
    eventually(lambda: gateway.metric("requests_running") == 0)
    assert gateway.metric("client_disconnects_total", model="tiny", phase=phase) == left + 1


def test_leaving_in_the_middle_of_the_body(gateway: Gateway) -> None:
    """A client that leaves before its request is complete is counted and harms nobody."""
    before = gateway.metric("requests_total", outcome="client_abort", model="_other")
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(head.encode() + b"content-length: 1000\r\n\r\n{")
    eventually(
        lambda: gateway.metric("requests_total", outcome="client_abort", model="_other") > before
    )


def test_tokens_of_a_left_stream_are_counted(gateway: Gateway) -> None:
    """Without a usage report the text that went out is what counts as generated."""
    before, decoded = gateway.metric("generated_tokens_total"), gateway.engine_state()["decoded"]
    leave_early(gateway, body(stream=True, fake=NEVER), after=b"aae")
    counted = eventually(lambda: gateway.metric("generated_tokens_total") - before)
    eventually(lambda: gateway.engine_state()["running"] == 0)
    assert 5 <= counted <= gateway.engine_state()["decoded"] - decoded < NEVER["tokens"]


def test_leaving_after_the_end_is_success(gateway: Gateway) -> None:
    """A client that hangs up right after [DONE] has got everything."""
    before = gateway.metric("requests_total", outcome="ok")
    for _ in range(20):
        leave_early(gateway, body(stream=True, fake={"tokens": 2}), after=b"[DONE]")
    eventually(lambda: gateway.metric("requests_total", outcome="ok") == before + 20)


def test_slow_reader_does_not_harm_others(gateway: Gateway) -> None:
    """A client that does not read blocks its own stream only, and memory stays bounded."""
    raw = json.dumps(body(stream=True, fake={"tokens": 200000})).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(raw)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as slow:
        slow.sendall(head.encode() + raw)
        slow.recv(100)
        assert gateway.http.post(CHAT, json=body()).status_code == 200
        decoded = eventually(lambda: _settled(gateway))
        assert decoded < 200000
    eventually(lambda: gateway.engine_state()["running"] == 0)


def _settled(gateway: Gateway) -> int:
    """Return how many tokens the engine has decoded once it has stopped to decode."""
    before = gateway.engine_state()["decoded"]
    time.sleep(0.2)
    after = gateway.engine_state()["decoded"]
    return after if after == before else 0
