"""What goes wrong between gateway and engine: the client gets all of it or is told, and soon."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.gateway.harness import CHAT, Gateway, eventually
from tests.gateway.raw_engine import (
    ANSWER,
    NAME,
    STREAM_HEAD,
    Behave,
    RawEngine,
    chunk,
    event,
    raw_engine,
    reset,
)

STALL_S = 1.5


def writes(*parts: bytes, pause_s: float = 0.0, close: bool = False) -> Behave:
    """Return the behaviour of writing parts, with pauses, and perhaps hanging up."""

    async def behave(writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if close:
            writer.close()

    return behave


async def reset_at_once(writer: asyncio.StreamWriter) -> None:
    """Reset before any byte."""
    reset(writer)


async def reset_in_the_middle(writer: asyncio.StreamWriter) -> None:
    """Reset after some text."""
    writer.write(STREAM_HEAD + chunk(event("one")))
    await writer.drain()
    await asyncio.sleep(0.05)
    reset(writer)


async def stall(writer: asyncio.StreamWriter) -> None:
    """Send some text and fall silent."""
    writer.write(STREAM_HEAD + chunk(event("one")))
    await writer.drain()
    await asyncio.sleep(60)


async def half_close(writer: asyncio.StreamWriter) -> None:
    """Send some text, then the end of the sending side only."""
    writer.write(STREAM_HEAD + chunk(event("one")))
    writer.write_eof()
    await asyncio.sleep(60)


SINGLE_BYTES = [bytes([each]) for each in STREAM_HEAD + chunk(ANSWER) + b"0\r\n\r\n"]
LENGTH = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n"
BEHAVIOURS = {
    "fine": writes(STREAM_HEAD + chunk(ANSWER) + b"0\r\n\r\n"),
    "single bytes": writes(*SINGLE_BYTES),
    "done twice": writes(STREAM_HEAD + chunk(ANSWER + b"data: [DONE]\n\n") + b"0\r\n\r\n"),
    "text after done": writes(STREAM_HEAD + chunk(ANSWER + event("three")) + b"0\r\n\r\n"),
    "no last chunk": writes(STREAM_HEAD + chunk(ANSWER), close=True),
    "body to the end": writes(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + ANSWER, close=True
    ),
    "length too long": writes(LENGTH % (len(ANSWER) + 50) + ANSWER, close=True),
    "reset at once": reset_at_once,
    "reset": reset_in_the_middle,
    "stall": stall,
    "half close": half_close,
    "length too short": writes(LENGTH % 40 + ANSWER, close=True),
    "garbage": writes(STREAM_HEAD + chunk(event("one") + b"\x00\xff rubbish\n\n") + b"0\r\n\r\n"),
    "500": writes(b"HTTP/1.1 500 X\r\ncontent-length: 6\r\n\r\nsecret"),
    "no http": writes(b"SSH-2.0-OpenSSH\r\n\r\n", close=True),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[RawEngine]:
    """Run the engine."""
    with raw_engine(BEHAVIOURS) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(engine: RawEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Run a gateway before it."""
    directory: Path = tmp_path_factory.mktemp("wire")
    models = {"tiny": {"model": NAME, "urls": [engine.url]}}
    running = Gateway(directory, {"models": models}, {"read_timeout_s": STALL_S})
    try:
        running.wait_ready()
        yield running
    finally:
        running.close()


def ask(gateway: Gateway, text: str) -> httpx.Response:
    """Ask for a stream."""
    messages = [{"role": "user", "content": text}]
    return gateway.http.post(CHAT, json={"model": "tiny", "messages": messages, "stream": True})


WHOLE = ("fine", "single bytes", "done twice", "text after done", "no last chunk")


@pytest.mark.parametrize("text", [*WHOLE, "body to the end", "length too long"])
def test_a_whole_answer_is_whole(gateway: Gateway, text: str) -> None:
    """However the bytes are cut, and whatever follows the end mark, the client gets the answer."""
    reply = ask(gateway, text)
    assert reply.status_code == 200
    assert [word for word in ("one", "two", "three") if word in reply.text] == ["one", "two"]
    assert reply.text.count("[DONE]") == 1
    assert '"error"' not in reply.text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("reset", "engine_unavailable"),
        ("half close", "engine_unavailable"),
        ("length too short", "engine_unavailable"),
        ("stall", "engine_timeout"),
        ("garbage", "engine_error"),
    ],
)
def test_a_broken_stream_says_so(gateway: Gateway, text: str, code: str) -> None:
    """After the first byte the stream ends in an error event and the end mark, within the limit."""
    started = time.monotonic()
    reply = ask(gateway, text)
    assert time.monotonic() - started < STALL_S + 8
    assert reply.status_code == 200
    assert f'"code": "{code}"' in reply.text
    assert reply.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("text", "status"), [("reset at once", 503), ("500", 502), ("no http", 502)]
)
def test_a_failure_before_the_first_byte_is_a_status(
    gateway: Gateway, engine: RawEngine, text: str, status: int
) -> None:
    """It has its own status code, no secret of the engine, and with one engine no second try."""
    reply = ask(gateway, text)
    assert reply.status_code == status
    assert "secret" not in reply.text
    # A reset on a connection that had lain idle may be its end and not the request's.
    assert engine.num_asked[text] <= (2 if text == "reset at once" else 1)


def test_nothing_is_left_behind(gateway: Gateway) -> None:
    """After all of this no request counts as running, and the gateway serves."""
    assert ask(gateway, "fine").status_code == 200
    eventually(lambda: gateway.metric("requests_running") == 0)  # a reply ends before its account
    assert "Traceback" not in gateway.log
