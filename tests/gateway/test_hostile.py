"""Hostile bodies, streams and names: always our envelope, never a 5xx of our own, never a hang."""

import asyncio
import json
import math
import time
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message

from gateway.app import Application, create_service
from gateway.errors import ApiError
from gateway.forwarding import ResponseRelay
from gateway.registry import Metrics
from gateway.settings import load_settings
from gateway.streaming import EventRelay
from gateway.trace import RequestTrace
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_launch import FakeLaunch
from tests.gateway.harness import CHAT, QUESTION, Gateway
from tests.hostile import JSON, MUTATIONS, changed, encoded

LIMIT_S = 60
JSON_TYPE = {"content-type": "application/json"}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "tiny", "messages": QUESTION, "max_tokens": 2},
    "/v1/completions": {"model": "tiny", "prompt": "a", "max_tokens": 2},
    "/v1/responses": {"model": "tiny", "input": "a"},
    "/v1/embeddings": {"model": "tiny", "input": "a"},
    "/tokenize": {"model": "tiny", "prompt": "a"},
    "/detokenize": {"model": "tiny", "tokens": [1]},
}
BOUNDED = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def check(reply: httpx.Response) -> None:
    """Hold a reply to the promise: an answer, or a refusal in the full envelope."""
    assert reply.status_code < 500, reply.text
    if reply.status_code >= 400:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@BOUNDED
@given(path=st.sampled_from(list(BODIES)), changes=MUTATIONS)
def test_any_field_may_hold_anything(gateway: Gateway, path: str, changes: dict[str, Any]) -> None:
    """Numbers that are none, huge ones, half characters and deep nesting, in any known field."""
    raw = encoded(changed(BODIES[path], changes))
    check(gateway.http.post(path, content=raw, headers=JSON_TYPE, timeout=LIMIT_S))


@BOUNDED
@given(path=st.sampled_from(list(BODIES)), raw=st.binary(max_size=200) | JSON.map(encoded))
@example(path=CHAT, raw=b'{"model": ')
@example(path=CHAT, raw=b'{"a": "\\ud800"}')
@example(path=CHAT, raw=b'{"a": ' + b"9" * 5000 + b"}")
@example(path="/v1/responses", raw=b'{"model": "tiny", "x": ' + b"[" * 2000 + b"]" * 2000 + b"}")
def test_any_bytes_may_be_the_body(gateway: Gateway, path: str, raw: bytes) -> None:
    """What is no request at all is refused."""
    reply = gateway.http.post(path, content=raw, headers=JSON_TYPE, timeout=LIMIT_S)
    check(reply)
    assert reply.status_code >= 400


@pytest.mark.parametrize("path", list(BODIES))
def test_ten_megabytes(gateway: Gateway, path: str) -> None:
    """A body of 10 MB is refused by its length, or, where it is allowed, read and answered."""
    long = {"user": "x" * 10_000_000} if path == CHAT else {}
    raw = json.dumps(BODIES[path] | {"input": "x" * 10_000_000} | long).encode()
    reply = gateway.http.post(path, content=raw, headers=JSON_TYPE, timeout=LIMIT_S)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def _keys(value: bytes) -> bytes:
    return b"{" + b",".join(b'"%d":%s' % (number, value) for number in range(400_000)) + b"}"


def test_ten_megabytes_that_are_allowed(start_gateway: StartGateway) -> None:
    """Long texts, long lists, many keys and deep nesting of 10 MB get their answer or refusal."""
    gateway = start_gateway(max_body_bytes=16 * 1024 * 1024, max_body_parts=10**8)
    size = 10_000_000
    long_text = [{"role": "user", "content": "word " * (size // 5)}]
    texts = BODIES["/tokenize"] | {"prompt": "x" * (size // 8)}
    ids = {"model": "tiny", "tokens": [7] * (size // 9)}
    odd: list[tuple[str, bytes, int]] = [
        (CHAT, json.dumps(BODIES[CHAT] | {"messages": long_text}).encode(), 400),
        (CHAT, json.dumps(BODIES[CHAT] | {"user": "x" * size}).encode(), 200),
        (CHAT, json.dumps(BODIES[CHAT] | {f"k{i}": 1 for i in range(size // 80)}).encode(), 400),
        (CHAT, b'{"model": "tiny", "messages": ' + b"[" * size, 400),
        ("/tokenize", json.dumps(texts).encode(), 200),
        ("/detokenize", json.dumps(ids).encode(), 200),
    ]
    for path, raw, status in odd:
        reply = gateway.http.post(path, content=raw, headers=JSON_TYPE, timeout=LIMIT_S)
        check(reply)
        assert reply.status_code == status, reply.text[:300]
        assert status == 200 or len(reply.content) < 2000


MILLIONS = 2_000_000
ONES = b"1," * MILLIONS + b"1"


def test_millions_of_wrong_items(start_gateway: StartGateway) -> None:
    """The first one is told, at once: whoever describes them all holds up every stream."""
    gateway = start_gateway(max_body_bytes=16 * 1024 * 1024, max_body_parts=10**8)
    wrong: list[tuple[str, str, bytes, str]] = [
        (CHAT, "messages", b"[" + ONES + b"]", "messages.0"),
        (CHAT, "messages", b'[{"role":"user","content":[' + ONES + b"]}]", "messages.0.content.0"),
        (CHAT, "messages", b'[{"role":"user","tool_calls":[' + ONES + b"]}]", "messages.0"),
        (CHAT, "logit_bias", _keys(b'"a"'), "logit_bias.0"),
        (CHAT, "metadata", _keys(b"0"), "metadata.0"),
        ("/v1/completions", "prompt", b"[-" + ONES + b"]", "prompt.0"),
        ("/v1/completions", "prompt", b'[["b"],[' + ONES + b"]]", "prompt.0.0"),
        ("/detokenize", "tokens", b"[{}," + ONES + b"]", "tokens.0"),
    ]
    for path, name, raw, param in wrong:
        rest = {key: value for key, value in BODIES[path].items() if key != name}
        whole = json.dumps(rest).encode()[:-1] + b',"%s":' % name.encode() + raw + b"}"
        lasted_s = math.inf
        for _ in range(3):  # a busy machine may have held it up
            started = time.perf_counter()
            reply = gateway.http.post(path, content=whole, headers=JSON_TYPE, timeout=LIMIT_S)
            lasted_s = min(lasted_s, time.perf_counter() - started)
            if lasted_s < 5:
                break
        error = reply.json()["error"]
        assert (reply.status_code, len(reply.content) < 2000) == (400, True), error
        assert error["param"].startswith(param), error
        assert lasted_s < 5, f"{name}: {lasted_s:.1f} s"


PIECES = st.sampled_from(
    [
        *(b"data:", b"data: ", b"\n", b"\n\n", b"\r\n\r\n", b"\r", b": ping\n\n", b"event: x\n"),
        *(b"[DONE]", b'{"choices":[', b'{"index":0,"delta":{"content":"', b'"}}]}', b"}\n\n"),
        *(b'"usage":null', b'"usage":5', b'"usage":{"prompt_tokens":-1}', b'"finish_reason":"'),
        *(b'{"error":', b"\xff\xfe", b"\x00", b'"index":' + b"9" * 30, b'{"type":'),
        *(b'"response.completed"', b'"response":[', b'"response":{"usage":{"input_tokens":"x"}}'),
        b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1e999}}\n\n',
        b'data: {"type":"response.completed","response":{"usage":{"input_tokens":[]}}}\n\n',
        b"data: [1]\n\n",
    ]
)


@cache
def shared_metrics() -> Metrics:
    """Return one registry for all examples; making one takes longer than an example."""
    return Metrics()


@settings(BOUNDED, max_examples=300)
@given(pieces=st.lists(PIECES | st.binary(max_size=8), max_size=30), asks=st.booleans())
def test_malformed_events_of_an_engine(pieces: list[bytes], asks: bool) -> None:
    """Whatever an engine sends as events ends in a complete stream or in one of our errors."""
    metrics = shared_metrics()
    for kind in ("chat", "response"):
        trace = RequestTrace(metrics)
        trace.route("m", "v", is_stream=True)
        relay = EventRelay(trace, includes_usage=asks) if kind == "chat" else ResponseRelay(trace)
        try:
            out = b"".join([relay.feed(piece) for piece in pieces]) + relay.finish()
        except ApiError as error:
            statuses = {error.status}
            assert statuses <= {502, 503}
        else:
            assert relay.is_complete
            assert kind == "response" or out.rstrip().endswith(b"[DONE]")


def test_model_names_of_strangers_add_no_series(tmp_path: Path) -> None:
    """2,000 random model names on all routes leave as many metric series as ten do."""
    models = {"tiny": {"model": "fake", "recipe": "int4"}}
    service = create_service(load_settings(None, {"models": models}, {}), launch=FakeLaunch())
    app = Application(service)
    paths = list(BODIES)

    def count() -> int:
        return sum(len(metric.samples) for metric in service.metrics.registry.collect())

    async def ask(numbers: range) -> None:
        for number in numbers:
            path = paths[number % len(paths)]
            body = BODIES[path] | {"model": f"é{number * 7919 % 10_007}@\x00{number}"}
            assert await status_of(app, path, json.dumps(body).encode()) == 404

    async def scenario() -> None:
        await ask(range(12))
        before = count()
        await ask(range(12, 2_000))
        assert count() == before

    asyncio.run(scenario())


async def status_of(app: ASGIApp, path: str, raw: bytes) -> int:
    """Post a body without a network and return the status; a client would take most of the time."""
    statuses: list[int] = []

    messages: list[Message] = [{"type": "http.request", "body": raw}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()  # the client stays
        return messages.pop()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    sent = JSON_TYPE | {"host": "127.0.0.1"}
    headers = [(name.encode(), value.encode()) for name, value in sent.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    await app(scope | {"query_string": b"", "root_path": ""}, receive, send)
    return statuses[0]
