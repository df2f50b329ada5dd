"""Tests of hostile and mistaken requests: refused by name, and never the end of the process."""

import json
from typing import Any

import httpx
import pytest

from tests.engine.fakes import MODEL, RunningEngine, body, post

TOOL = {"type": "function", "function": {"name": "f"}}


def form(schema: Any) -> dict[str, Any]:
    """Return a chat request for an answer of this schema."""
    return body(
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    )


SCHEMA = "response_format.json_schema.schema"
FORMS: list[tuple[str, bytes | dict[str, Any], str | None, str]] = [
    ("empty enum", form({"enum": []}), SCHEMA, "unsupported_schema"),
    ("false", form(False), SCHEMA, "unsupported_schema"),
    ("no number", form({"type": "integer", "minimum": 2, "maximum": 1}), SCHEMA, ""),
    ("dangling", form({"$ref": "#/nowhere"}), SCHEMA, "unsupported_schema"),
    ("look-behind", form({"type": "string", "pattern": "(?<=a)b"}), SCHEMA, "unsupported_schema"),
    ("unknown type", form({"type": "colour"}), SCHEMA, "unsupported_schema"),
    ("schema text", form("x"), SCHEMA, "invalid_value"),
    ("endless", form({"$ref": "#"}), SCHEMA, ""),
    ("format", body(response_format={"type": "xml"}), "response_format.type", "invalid_value"),
    (
        "no schema",
        body(response_format={"type": "json_schema"}),
        "response_format.json_schema",
        "invalid_value",
    ),
    ("regex", body(guided_regex="("), "guided_regex", "unsupported_schema"),
    ("regex number", body(guided_regex=5), "guided_regex", "invalid_value"),
    ("choice", body(guided_choice=[1]), "guided_choice", "invalid_value"),
    (
        "two forms",
        body(guided_regex="a", guided_choice=["a"]),
        "guided_choice",
        "invalid_value",
    ),
    (
        "grammar",
        body(structured_outputs={"grammar": "x"}),
        "structured_outputs.grammar",
        "unsupported_parameter",
    ),
    (
        "form and min_tokens",
        body(guided_regex="a", min_tokens=2),
        "min_tokens",
        "unsupported_parameter",
    ),
    ("tools unknown to the template", body(tools=[TOOL]), "tools", "unsupported_parameter"),
    ("choice of no tools", body(tool_choice="required"), "tool_choice", "invalid_value"),
]


def text(prompt: Any, **fields: Any) -> dict[str, Any]:
    """Return a completion request."""
    return {"model": MODEL, "prompt": prompt, **fields}


TEXTS: list[tuple[str, bytes | dict[str, Any], str | None, str]] = [
    ("prompt null", text(None), "prompt", "invalid_value"),
    ("prompt number", text(5), "prompt", "invalid_value"),
    ("prompt object", text({}), "prompt", "invalid_value"),
    ("prompt empty", text(""), "prompt", "invalid_value"),
    ("no prompts", text([]), "prompt", "invalid_value"),
    ("one empty prompt", text(["a", ""]), "prompt", "invalid_value"),
    ("empty ids", text([[1], []]), "prompt", "invalid_value"),
    ("mixed", text(["a", 1]), "prompt", "invalid_value"),
    ("booleans", text([True]), "prompt", "invalid_value"),
    ("id beyond", text([1, 320]), "prompt", "invalid_value"),
    ("id negative", text([-1]), "prompt.0", "invalid_value"),
    ("id huge", text([[2**40]]), "prompt.0.0", "invalid_value"),
    ("many prompts", text(["a"] * 2049), "prompt", "invalid_value"),
    ("long prompt", text("hello " * 300), "prompt", "context_length_exceeded"),
    ("long ids", text([5] * 256), "prompt", "context_length_exceeded"),
    ("nothing to say", text("a", max_tokens=0), "max_tokens", "invalid_value"),
    ("suffix", text("a", suffix="b"), "suffix", "unsupported_parameter"),
    ("best_of", text("a", best_of=3), "best_of", "unsupported_parameter"),
    ("logprobs 21", text("a", logprobs=21), "logprobs", "invalid_value"),
    ("logprobs true", text("a", logprobs=True), "logprobs", "invalid_value"),
    (
        "prompt_logprobs streamed",
        text("a", prompt_logprobs=1, stream=True),
        "prompt_logprobs",
        "unsupported_parameter",
    ),
]

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
    ("max_tokens beyond", body(max_tokens=257), "max_tokens", "invalid_value"),
    ("n zero", body(n=0), "n", "invalid_value"),
    ("n huge", body(n=129), "n", "invalid_value"),
    ("bias", body(logit_bias={"99999": 1}), "logit_bias", "invalid_value"),
    ("bias text", body(logit_bias={"5": "x"}), "logit_bias.5", "invalid_value"),
    ("penalty", body(presence_penalty=2.5), "presence_penalty", "invalid_value"),
    ("repetition", body(repetition_penalty=0), "repetition_penalty", "invalid_value"),
    ("min_p", body(min_p=1.5), "min_p", "invalid_value"),
    ("stop ids", body(stop_token_ids=[-1]), "stop_token_ids.0", "invalid_value"),
    ("stop ids many", body(stop_token_ids=[1] * 129), "stop_token_ids", "invalid_value"),
    ("tool", body(tools=[{"type": "function"}]), "tools.0.function", "invalid_value"),
    ("unknown", body(**{"x" * 5000: 1}), "x" * 64, "unsupported_parameter"),
    (
        "image",
        body(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "messages.0.content.0.type",
        "unsupported_parameter",
    ),
    *FORMS,
    *TEXTS,
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
