"""Tests of hostile and mistaken requests: refused by name, and never the end of the process."""

import json
from typing import Any

import httpx
import pytest

from tests.engine.fakes import MODEL, RunningEngine, body, post

HOSTILE: list[tuple[str, bytes | dict[str, Any], str | None, str]] = [
    ("no JSON", b"{", None, "invalid_json"),
    ("empty", b"", None, "invalid_json"),
    ("no object", b"[1]", None, "invalid_json"),
    ("not UTF-8", b'{"model":"\xff"}', None, "invalid_json"),
    ("NaN", b'{"model":"m","messages":[],"temperature":NaN}', None, "invalid_json"),
    ("surrogate", json.dumps(body(stop="\ud800")).encode(), None, "invalid_json"),
    ("nesting", b"[" * 100_000, None, "invalid_json"),
    ("nested object", b'{"model":' + b'{"a":' * 500 + b"1" + b"}" * 501, "messages", ""),
    ("no messages", {"model": MODEL}, "messages", "invalid_value"),
    ("empty messages", body(messages=[]), "messages", "invalid_value"),
    ("messages text", body(messages="hi"), "messages", "invalid_value"),
    ("role", body(messages=[{"role": "king", "content": "x"}]), "messages.0.role", ""),
    ("content number", body(messages=[{"role": "user", "content": 5}]), "messages.0.content", ""),
    ("temperature text", body(temperature="hot"), "temperature", "invalid_value"),
    ("temperature high", body(temperature=2.1), "temperature", "invalid_value"),
    ("temperature huge", body(temperature=1e308), "temperature", "invalid_value"),
    ("top_p", body(top_p=-0.1), "top_p", "invalid_value"),
    ("top_k", body(top_k=-2), "top_k", "invalid_value"),
    ("top_k fraction", body(top_k=1.5), "top_k", "invalid_value"),
    ("max_tokens negative", body(max_tokens=-1), "max_tokens", "invalid_value"),
    ("max_tokens zero", body(max_completion_tokens=0), "max_completion_tokens", "invalid_value"),
    ("max_tokens huge", b'{"max_tokens":1e400}', None, ""),
    ("seed too large", body(seed=2**63), "seed", "invalid_value"),
    ("stop empty", body(stop=""), "stop", "invalid_value"),
    ("stop holds empty", body(stop=["a", ""]), "stop.1", "invalid_value"),
    ("five stops", body(stop=list("abcde")), "stop", "invalid_value"),
    ("stop number", body(stop=[1]), "stop.0", "invalid_value"),
    ("top_logprobs alone", body(top_logprobs=2), "top_logprobs", "invalid_value"),
    ("top_logprobs 21", body(logprobs=True, top_logprobs=21), "top_logprobs", "invalid_value"),
    ("n", body(n=2), "n", "unsupported_parameter"),
    ("tools", body(tools=[{"type": "function"}]), "tools", "unsupported_parameter"),
    ("unknown", body(**{"x" * 5000: 1}), "x" * 64, "unsupported_parameter"),
    (
        "image",
        body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "messages.0.content.0.type",
        "unsupported_parameter",
    ),
    (
        "10 MB",
        body(messages=[{"role": "user", "content": "x" * 10**7}]),
        "messages",
        "context_length_exceeded",
    ),
    (
        "too long",
        body(messages=[{"role": "user", "content": "hello " * 300}]),
        "messages",
        "context_length_exceeded",
    ),
]


@pytest.mark.parametrize(
    ("hostile", "param", "code"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_bad_requests_are_refused_by_name(
    engine: RunningEngine, hostile: bytes | dict[str, Any], param: str | None, code: str
) -> None:
    """Each one gets OpenAI's envelope with status 400, never a crash, and nothing is computed."""
    response = post(engine, hostile)

    error = response.json()["error"]
    assert response.status_code == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param or code == ""
    assert error["code"] == code or code == ""
    assert len(error["message"]) < 500
    assert engine.runner.batches == []
    assert httpx.get(f"{engine.url}/health").status_code == 200


def test_a_body_beyond_the_limit_is_not_kept(engine: RunningEngine) -> None:
    """17 MB get 413."""
    response = post(engine, b" " * (17 * 1024 * 1024))

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
