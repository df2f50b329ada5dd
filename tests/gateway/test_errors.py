"""Every refusal has the right status and the full OpenAI envelope."""

import json
from typing import Any

import openai
import pytest

from gateway.envelope import render, sse_event
from gateway.errors import KNOWN_CODES, ApiError, EngineDown, InternalError, ModelNotFound
from tests.gateway.harness import CHAT, Gateway, body, eventually

LONG = [{"role": "user", "content": "word " * 5000}]

BAD_FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": "nope"}, "model", "model_not_found"),
    ({"model": "tiny@int8"}, "model", "model_not_found"),
    ({"model": "tiny@"}, "model", "model_not_found"),
    ({"model": 5}, "model", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0", "invalid_value"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "invalid_value"),
    ({"temperature": 2.1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"temperature": True}, "temperature", "invalid_value"),
    ({"top_p": -0.1}, "top_p", "invalid_value"),
    ({"n": 129}, "n", "invalid_value"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", 1]}, "stop.1", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"presence_penalty": 1}, "presence_penalty", "unsupported_parameter"),
    ({"messages": LONG}, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param", "code"), BAD_FIELDS)
def test_bad_field(
    gateway: Gateway, fields: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    """A bad field is refused before any stream begins, and named."""
    is_stream = stream and "stream_options" not in fields  # there those are right
    reply = gateway.http.post(CHAT, json=body(stream=is_stream) | fields)
    assert reply.status_code == (404 if code == "model_not_found" else 400)
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert len(error["message"]) < 400
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"\xff", b'{"a": "\\ud800"}', b"[" * 9000],
)
def test_body_that_is_no_object(gateway: Gateway, content: bytes) -> None:
    """Anything but a JSON object is 400 invalid_json."""
    reply = gateway.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("field", ["unknown", "temperature"])
@pytest.mark.parametrize("depth", [300, 900, 1000])
def test_deep_nesting_is_refused(gateway: Gateway, field: str, depth: int) -> None:
    """What can be read but not be written again is the client's error, not ours."""
    raw = json.dumps(body()).encode()[:-1] + b', "%s": ' % field.encode()
    content = raw + b"[" * depth + b"]" * depth + b"}"
    reply = gateway.http.post(CHAT, content=content, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (400, "invalid_request_error")
    assert set(error) == {"message", "type", "param", "code"}


def test_missing_fields_are_named(gateway: Gateway) -> None:
    """An empty object is told which parameter is missing."""
    error = gateway.http.post(CHAT, json={}).json()["error"]
    assert error["message"] == "missing required parameter: 'model'"


def test_unknown_model_lists_those_that_exist(gateway: Gateway) -> None:
    """A wrong variant is told which ones are served."""
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.openai.chat.completions.create(
            model="tiny@int8", messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.code == "model_not_found"
    assert "tiny@int4" in caught.value.message
    reply = gateway.http.get("/v1/models/nope/really")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


def test_content_type_must_be_json(gateway: Gateway) -> None:
    """A form or plain text is refused, so that no web page can post here unasked."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = gateway.http.post(
            CHAT, content=json.dumps(body()).encode(), headers={"content-type": kind}
        )
        assert reply.status_code == 400
        assert "content-type" in reply.json()["error"]["message"]


def test_long_body_is_refused(gateway: Gateway) -> None:
    """A body over the limit is 413, with and without a length in front."""
    raw = json.dumps(body() | {"user": "x" * 70000}).encode()
    headers = {"content-type": "application/json"}
    for content in (raw, iter([raw[:100], raw[100:]])):
        reply = gateway.http.post(CHAT, content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")


def test_unknown_path_and_method(gateway: Gateway) -> None:
    """The router's own refusals use the envelope too."""
    reply = gateway.http.get("/v2/chat")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    reply = gateway.http.get(CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.headers["allow"] == "POST"


def test_no_redirects(gateway: Gateway) -> None:
    """A trailing slash is another path; nobody is sent to the Host that a client made up."""
    for path in ("/health/", "/v1/chat/completions/", "/metrics/"):
        reply = gateway.http.get(path, headers={"host": "localhost:1"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
        assert "location" not in reply.headers


ENGINE_REPLIES: list[tuple[int, str, int, str]] = [
    (400, '{"error":{"message":"m","type":"t","param":"p","code":"c"}}', 400, "c"),
    (400, '{"error":{"message":"m","type":"BadRequestError","code":400}}', 400, "invalid_value"),
    (
        400,
        '{"object":"error","message":"maximum context length is 5 tokens","code":400}',
        400,
        "context_length_exceeded",
    ),
    (422, '{"detail":"x"}', 400, "invalid_value"),
    (429, '{"error":{"message":"m","code":"rate_limit_exceeded"}}', 429, "rate_limit_exceeded"),
    (500, '{"error":{"message":"Traceback: secret","code":"x"}}', 502, "engine_error"),
    (500, "Traceback: secret", 502, "engine_error"),
    (404, '{"error":{"message":"m","code":"x"}}', 502, "engine_error"),
    (401, "[]", 502, "engine_error"),
    (503, '{"error":{"message":"m","code":"draining"}}', 503, "engine_unavailable"),
    (200, "not json", 502, "engine_error"),
    (200, '{"choices":[]}', 502, "engine_error"),
]


@pytest.mark.parametrize(("status", "reply", "expected", "code"), ENGINE_REPLIES)
def test_refusals_of_an_engine(
    gateway: Gateway, status: int, reply: str, expected: int, code: str
) -> None:
    """An engine's refusal is passed on in our envelope; its defects are told apart from ours."""
    for stream in (False, True):
        fake = {"status": status, "body": reply}
        response = gateway.http.post(CHAT, json=body(stream=stream, fake=fake))
        if stream and status == 200:
            expected, code = 502, "engine_error"
        assert response.status_code == expected
        error = response.json()["error"]
        assert error["code"] == code
        assert set(error) == {"message", "type", "param", "code"}
        assert "secret" not in response.text
        if expected in (429, 503):
            assert response.headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("garbage", "engine_error"),
        ("http_garbage", "engine_error"),
        ("truncate", "engine_unavailable"),
    ],
)
def test_broken_stream_ends_with_an_error_event(gateway: Gateway, fault: str, code: str) -> None:
    """What breaks after the stream began ends in an error event and [DONE], never in silence."""
    with gateway.stream({"fault": fault, "after": 2}) as response:
        *_, event, done, _ = response.read().decode().split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == code


def test_client_library_raises_on_a_broken_stream(gateway: Gateway) -> None:
    """The official client sees an exception, not a short answer."""
    stream = gateway.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        extra_body={"fake": {"fault": "truncate", "after": 2}},
    )
    with pytest.raises(openai.APIError, match="ended before the answer"):
        list(stream)


def test_error_event_of_an_engine_is_passed_on(gateway: Gateway) -> None:
    """An engine's own error event reaches the client and counts as an error."""
    before = gateway.metric("requests_total", outcome="error")
    with gateway.stream({"fault": "error", "after": 1}) as response:
        text = response.read().decode()
    assert '"boom"' in text
    assert text.count("[DONE]") == 1
    eventually(lambda: gateway.metric("requests_total", outcome="error") == before + 1)


def test_retry_after_is_never_longer_than_clients_wait() -> None:
    """Retry-After is a whole number of seconds from 1 to 120."""
    for seconds, expected in ((0.01, "1"), (2, "2"), (4000, "120")):
        assert render(EngineDown("x", retry_after_s=seconds)).headers["retry-after"] == expected
    assert "retry-after" not in render(ModelNotFound("x")).headers


def test_codes_are_distinct_strings() -> None:
    """Every class of the tree has a code of its own."""
    assert {"model_not_found", "context_length_exceeded", "draining"} <= KNOWN_CODES
    assert all(isinstance(code, str) for code in KNOWN_CODES)


def test_any_message_renders() -> None:
    """Lone surrogates and quotes in a message cannot break a body or an event."""
    error = ApiError('"\ud800\n', param="p")
    assert json.loads(render(error).body)["error"]["message"] == '"\ud800\n'
    assert sse_event(error).count(b"\n") == 2
    assert "internal" in str(InternalError())
