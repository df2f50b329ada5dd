"""Turns and deadlines on a running gateway: excess is told at once, and nobody waits for ever."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest

from gateway.deadline import deadline_of
from tests.gateway.harness import CHAT, QUESTION, Gateway, body, eventually

NEVER = {"tokens": 4000, "pace_s": 0.01}
SILENT = {"head_s": 60}
MS = {"x-request-timeout-ms": "300"}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with few places."""
    tiny = {"model": "fake", "recipe": "int4"}
    models = {
        "tiny": tiny | {"max_running": 2, "max_queued": 3},
        "hasty": tiny | {"max_running": 1, "queue_timeout_s": 0.2},
    }
    settings = {"models": models, "max_concurrent_requests": 8}
    gateway = Gateway(tmp_path_factory.mktemp("busy"), settings, {})
    gateway.wait_ready()
    eventually(lambda: '"loading"' not in gateway.http.get("/ready").text)
    yield gateway
    gateway.close()


def send(gateway: Gateway, content: dict[str, Any], *, missing: int = 0) -> socket.socket:
    """Send a request, or all of it but the last bytes, and return its connection."""
    raw = json.dumps(content).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    client.sendall(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw[: len(raw) - missing])
    return client


def running(gateway: Gateway) -> float:
    """Return how many requests are at engines."""
    return gateway.metric("requests_running")


def waiting(gateway: Gateway) -> float:
    """Return how many requests wait for their turn."""
    return gateway.metric("requests_waiting")


def code_of(reply: httpx.Response) -> tuple[int, str]:
    """Return status and code of a refusal."""
    return reply.status_code, reply.json()["error"]["code"]


@pytest.fixture
def held(busy: Gateway) -> Iterator[ExitStack]:
    """Return what holds connections; afterwards the gateway must be empty again."""
    with ExitStack() as stack:
        yield stack
    eventually(lambda: running(busy) == waiting(busy) == 0)
    assert busy.http.post(CHAT, json=body()).status_code == 200


def test_a_full_queue_is_told_at_once(busy: Gateway, held: ExitStack) -> None:
    """Two run, three wait, the rest is 503 within 100 ms; other models feel nothing."""
    for _ in range(5):
        held.enter_context(send(busy, body(stream=True, fake=NEVER)))
    eventually(lambda: (running(busy), waiting(busy)) == (2, 3))
    before = busy.metric("admission_rejections_total", model="tiny", reason="queue_full")
    times = []
    for _ in range(5):
        started = time.perf_counter()
        reply = busy.http.post(CHAT, json=body())
        times.append(time.perf_counter() - started)
        assert code_of(reply) == (503, "overloaded")
        assert reply.json()["error"]["type"] == "server_error"
        assert 1 <= int(reply.headers["retry-after"]) <= 120
    assert min(times) < 0.1
    after = busy.metric("admission_rejections_total", model="tiny", reason="queue_full")
    assert after == before + 5
    assert busy.http.post(CHAT, json=body() | {"model": "hasty"}).status_code == 200
    # They count as the model's, though no engine had them.
    assert busy.metric("requests_total", model="tiny", variant="_other", outcome="shed") >= 5


def test_who_leaves_the_queue_is_gone_at_once(busy: Gateway, held: ExitStack) -> None:
    """A client that hangs up while it waits frees its place, and never reaches the engine."""
    for _ in range(2):
        held.enter_context(send(busy, body(stream=True, fake=NEVER)))
    eventually(lambda: running(busy) == 2)
    leaving = [send(busy, body(fake=NEVER)) for _ in range(3)]
    eventually(lambda: waiting(busy) == 3)
    for client in leaving:
        client.close()
    eventually(lambda: waiting(busy) == 0)
    assert running(busy) == 2


def test_turns_come_when_others_end(busy: Gateway, held: ExitStack) -> None:
    """Waiting requests are answered as places get free, and their waits are measured."""
    before = busy.metric("queue_seconds_count", model="tiny")
    blocking = [send(busy, body(stream=True, fake=NEVER)) for _ in range(2)]
    eventually(lambda: running(busy) == 2)
    patient = [held.enter_context(send(busy, body())) for _ in range(3)]
    eventually(lambda: waiting(busy) == 3)
    for client in blocking:
        client.close()
    for client in patient:
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert busy.metric("queue_seconds_count", model="tiny") == before + 3


def test_waiting_ends(busy: Gateway, held: ExitStack) -> None:
    """Who gets no turn within the model's time is told to come back."""
    blocking = body(stream=True, fake=NEVER) | {"model": "hasty"}
    held.enter_context(send(busy, blocking))
    eventually(lambda: running(busy) == 1)
    reply = busy.http.post(CHAT, json=body() | {"model": "hasty"})
    assert code_of(reply) == (503, "overloaded")
    assert "within 0.2 s" in reply.json()["error"]["message"]
    assert busy.metric("admission_rejections_total", model="hasty", reason="queue_timeout") == 1


def test_the_whole_process_is_bounded(busy: Gateway, held: ExitStack) -> None:
    """Bodies that are on their way count too; probes and metrics always get through."""
    for _ in range(8):
        held.enter_context(send(busy, body(), missing=1))
    eventually(lambda: busy.status("/v1/models") == 503)
    reply = busy.http.get("/v1/models")
    assert code_of(reply) == (503, "overloaded")
    assert int(reply.headers["retry-after"]) >= 1
    assert busy.status("/health") == busy.status("/metrics") == busy.status("/ready") == 200
    assert busy.metric("admission_rejections_total", reason="process_full") >= 1
    counted = {"model": "_other", "variant": "_other", "operation": "chat", "outcome": "shed"}
    errors = {"model": "_other", "error_type": "overloaded", "status_class": "5xx"}
    assert busy.metric("requests_total", **counted) == 0  # a list of models is no request of one
    assert busy.http.post(CHAT, json=body()).status_code == 503
    assert busy.metric("requests_total", **counted) == 1
    assert busy.metric("request_errors_total", **errors) == 1
    held.close()
    eventually(lambda: busy.status("/v1/models") == 200)


def test_deadline_in_the_queue(busy: Gateway, held: ExitStack) -> None:
    """The time that a request waits for its turn counts."""
    for _ in range(2):
        held.enter_context(send(busy, body(stream=True, fake=NEVER)))
    eventually(lambda: running(busy) == 2)
    reply = busy.http.post(CHAT, json=body(), headers=MS)
    assert code_of(reply) == (504, "deadline_exceeded")
    assert waiting(busy) == 0


DEADLINES = [
    pytest.param(False, SILENT, MS, id="plain"),
    pytest.param(True, SILENT, MS, id="stream"),
    pytest.param(False, SILENT, {"x-stainless-read-timeout": "0.3"}, id="python SDK"),
    pytest.param(True, SILENT, {"x-stainless-read-timeout": "0.3"}, id="python SDK, stream"),
    pytest.param(False, NEVER, {"x-stainless-timeout": "1"}, id="node SDK"),
]


@pytest.mark.parametrize(("stream", "fake", "headers"), DEADLINES)
def test_deadline_before_the_first_byte(
    gateway: Gateway, stream: bool, fake: dict[str, Any], headers: dict[str, str]
) -> None:
    """When the client's time is over before a reply began: 504, and the engine stops."""
    before = gateway.metric("requests_total", outcome="timeout")
    cancelled = gateway.engine_state()["cancelled"]
    started = time.monotonic()
    content = body(stream=stream, fake=fake)
    reply = gateway.http.post(CHAT, json=content, headers=headers)
    assert code_of(reply) == (504, "deadline_exceeded")
    assert 0.2 < time.monotonic() - started < 20  # of itself it would last 40
    assert gateway.metric("requests_total", outcome="timeout") == before + 1
    eventually(lambda: gateway.engine_state()["cancelled"] == cancelled + 1)


def test_deadline_in_a_stream(gateway: Gateway) -> None:
    """A stream whose time is over ends in an error event and [DONE], and the engine stops."""
    content = body(stream=True, fake=NEVER)
    cancelled = gateway.engine_state()["cancelled"]
    limit = {"x-request-timeout-ms": "1500"}
    with gateway.http.stream("POST", CHAT, json=content, headers=limit) as reply:
        assert reply.status_code == 200
        events = reply.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert json.loads(events[-3].removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert len(events) > 10
    eventually(lambda: gateway.engine_state()["cancelled"] == cancelled + 1)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "1e999"])
def test_what_the_sdk_cannot_mean_is_ignored(gateway: Gateway, value: str) -> None:
    """A header that nobody wrote by hand never refuses a request."""
    for name in ("x-stainless-timeout", "x-stainless-read-timeout"):
        reply = gateway.http.post(CHAT, json=body(), headers={name: value})
        assert reply.status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "soon", "", "9" * 20, "²"])
def test_a_wrong_deadline_is_named(gateway: Gateway, value: str) -> None:
    """The header that people do write is checked."""
    headers = httpx.Headers({"x-request-timeout-ms": value}, encoding="utf-8")
    reply = gateway.http.post(CHAT, json=body(), headers=headers)
    assert code_of(reply) == (400, "invalid_value")
    assert "'x-request-timeout-ms'" in reply.json()["error"]["message"]


def test_the_sdk_bounds_only_the_beginning(gateway: Gateway) -> None:
    """A stream that has begun goes on beyond the SDK's own timeout, as the SDK would read it."""
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", timeout=1.5) as client:
        stream = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": QUESTION[0]["content"]}],
            stream=True,
            extra_body={"fake": {"tokens": 10, "pace_s": 0.2}},
        )
        assert sum(1 for chunk in stream if chunk.choices[0].delta.content) == 10


def test_the_earliest_deadline_counts() -> None:
    """The operator's limit and the client's headers combine to the earliest, from the arrival."""

    async def left(limit_s: float | None, headers: dict[str, str]) -> tuple[float | None, ...]:
        now = asyncio.get_running_loop().time()
        found = deadline_of(headers, limit_s, age_s=1.0)
        moments = (found.end, found.first)
        return tuple(
            moment if moment is None else round(2 * (moment - now)) / 2 for moment in moments
        )

    sdk = {"x-stainless-timeout": "20", "x-stainless-read-timeout": "8.5"}
    assert asyncio.run(left(None, {})) == (None, None)
    assert asyncio.run(left(5, {"x-request-timeout-ms": "9000"})) == (4, None)
    assert asyncio.run(left(5, {"x-request-timeout-ms": "2500"})) == (1.5, None)
    assert asyncio.run(left(5, sdk)) == (4, 7.5)
