"""Unknown parameters: refused by name or listed in a header, never silently dropped."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.api.admin import ShadowRate
from gateway.api.canary import CanaryOrder
from gateway.api.side_by_side import SideBySide
from gateway.comparisons.wanted import CompareRequest
from gateway.errors import UnsupportedParameter
from gateway.parameters import WITHOUT_EFFECT
from gateway.wire import ExactWire, validated
from tests.gateway.harness import CHAT, QUESTION, Gateway, body

TEXT = "/v1/completions"
IGNORED = "x-narrowgate-ignored-parameters"

UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"shout": True}, "shout"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"verbosity": "low"}, "verbosity"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"response_format": {"type": "text", "shape": 1}}, "response_format.shape"),
    ({"tools": [{"type": "function", "function": {"name": "f", "x": 1}}]}, "tools.0.function.x"),
    ({"messages": [*QUESTION, {"role": "user", "content": "a", "x": 1}]}, "messages.1.x"),
    (
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": ""}}]},
        "messages.0.function_call",
    ),
]

HARMLESS: list[dict[str, Any]] = [
    {"user": "u", "metadata": {"a": "b"}, "store": True, "safety_identifier": "s"},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {}},
    {"prediction": {"type": "content", "content": "x"}},
    {"service_tier": "auto", "verbosity": "medium", "modalities": ["text"]},
    {"functions": [], "function_call": "auto"},
    {"reasoning_effort": None, "audio": None, "web_search_options": None},
    {"guided_regex": "a+", "structured_outputs": None, "logit_bias": {}},
    {"messages": [*QUESTION, {"role": "assistant", "content": "a", "refusal": None}, *QUESTION]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
    {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}},
]


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway that reports what it ignores."""
    models = {"tiny": {"model": "fake", "recipe": "int4", "extra_parameters": []}}
    settings = {"unknown_parameters": "report", "models": models}
    gateway = Gateway(tmp_path_factory.mktemp("lenient"), settings, {})
    gateway.wait_ready()
    yield gateway
    gateway.close()


def bare(*, stream: bool = False) -> dict[str, Any]:
    """Return a request without the script of the fake engine."""
    return {"model": "tiny", "messages": QUESTION, "stream": stream}


@pytest.mark.parametrize(("fields", "param"), UNKNOWN)
def test_unknown_parameters_are_refused(
    gateway: Gateway, fields: dict[str, Any], param: str
) -> None:
    """By default a field that nobody knows is 400 and named, before an engine sees it."""
    reply = gateway.http.post(CHAT, json=body() | fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == param
    assert IGNORED not in reply.headers


@pytest.mark.parametrize(("fields", "param"), UNKNOWN)
@pytest.mark.parametrize("stream", [False, True])
def test_unknown_parameters_are_listed(
    lenient: Gateway, fields: dict[str, Any], param: str, stream: bool
) -> None:
    """By setting the request is answered, and the header names what was left out."""
    reply = lenient.http.post(CHAT, json=bare(stream=stream) | fields)
    assert reply.status_code == 200
    assert reply.headers[IGNORED] == param


@pytest.mark.parametrize("fields", HARMLESS)
def test_harmless_parameters_are_accepted(gateway: Gateway, fields: dict[str, Any]) -> None:
    """What no answer depends on, and values that ask for nothing, are accepted without a word."""
    reply = gateway.http.post(CHAT, json=body() | fields)
    assert reply.status_code == 200, reply.text
    assert IGNORED not in reply.headers


def test_the_readme_names_what_is_accepted_without_effect() -> None:
    """The README's table has every name of ours, and in its first row no other."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if "no answer depends on them" in line)
    named = set(re.findall(r"`([a-z_.]+)`", row))
    assert named == WITHOUT_EFFECT | {"stream_options.include_obfuscation"}


def test_the_engine_never_sees_what_is_ignored(lenient: Gateway) -> None:
    """The body that reaches the engine has no trace of an ignored field."""
    for stream in (False, True):
        reply = lenient.http.post(CHAT, json=body(stream=stream, fake={"status": 500}))
        assert (reply.status_code, reply.headers[IGNORED]) == (200, "fake")
    reply = lenient.http.post("/tokenize", json={"model": "tiny", "prompt": "a", "odd": 1})
    assert (reply.status_code, reply.headers[IGNORED]) == (200, "odd")


@pytest.mark.parametrize("name", ["a\r\nset-cookie: x", "é\ud7ff", "a, b", "", "x" * 5000])
def test_odd_names_cannot_break_the_header(lenient: Gateway, name: str) -> None:
    """Names stand in the header in percent-encoding, cut short, and add no line of their own."""
    reply = lenient.http.post(CHAT, json=bare() | {name: 1})
    assert reply.status_code == 200
    assert "set-cookie" not in reply.headers
    listed = reply.headers[IGNORED]
    assert listed.isascii()
    assert len(listed) < 400
    assert "," not in listed


def test_many_names_are_cut(lenient: Gateway) -> None:
    """Hundreds of unknown names give a header that any client can read."""
    reply = lenient.http.post(CHAT, json=bare() | {f"name{i}": 1 for i in range(500)})
    assert reply.status_code == 200
    listed = reply.headers[IGNORED].split(", ")
    assert (len(listed), listed[-1]) == (65, "...")


def test_extra_parameters_pass(start_gateway: Any, tmp_path: Path) -> None:
    """What the model's setting names reaches the engine, nested names with dots."""
    names = ["fake", "stream_options.continuous_usage_stats", "messages.x"]
    models = {"tiny": {"model": "fake", "recipe": "int4", "extra_parameters": names}}
    gateway = start_gateway(models=models)
    options = {"include_usage": True, "continuous_usage_stats": True}
    messages = [QUESTION[0] | {"x": 1}]
    fields = {"messages": messages, "stream_options": options}
    assert gateway.http.post(CHAT, json=body(stream=True) | fields).status_code == 200
    reply = gateway.http.post(CHAT, json=body() | {"y": 1})
    assert reply.json()["error"]["param"] == "y"


FAR = {"model": "x", "urls": ["http://127.0.0.1:9"], "preload": False}
SCORES: list[tuple[str, dict[str, Any], str]] = [
    (CHAT, {"messages": QUESTION, "prompt_logprobs": 0}, "prompt_logprobs"),
    (TEXT, {"prompt": "a", "prompt_logprobs": 3}, "prompt_logprobs"),
    (TEXT, {"prompt": "a", "echo": True, "logprobs": 0}, "echo"),
]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with an engine of ours, engines elsewhere, and one that falls back there."""
    tiny = {"model": "fake", "recipe": "int4"}
    models: dict[str, Any] = {
        "tiny": tiny,
        "far": FAR,
        "trusted": FAR | {"extra_parameters": ["prompt_logprobs"]},
        "leaning": tiny | {"fallback": ["far"], "preload": False},
    }
    settings = {"models": models, "load_wait_s": 0.05}
    gateway = Gateway(tmp_path_factory.mktemp("mixed"), settings, {})
    gateway.wait_ready()
    yield gateway
    gateway.close()


@pytest.mark.parametrize(("path", "fields", "param"), SCORES)
@pytest.mark.parametrize("model", ["far", "leaning"])
def test_prompts_are_not_scored_elsewhere(
    mixed: Gateway, path: str, fields: dict[str, Any], param: str, model: str
) -> None:
    """Where the engine may not bound their memory, one error names the field and two remedies."""
    reply = mixed.http.post(path, json=fields | {"model": model})
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "unsupported_parameter")
    assert error["param"] == param
    assert "leave it out, or let the operator list 'prompt_logprobs' in extra_" in error["message"]


@pytest.mark.parametrize(("path", "fields", "param"), SCORES)
def test_prompts_are_scored_where_it_is_safe(
    mixed: Gateway, path: str, fields: dict[str, Any], param: str
) -> None:
    """Our own engine reads prompts in blocks, and an operator may answer for another one."""
    assert mixed.http.post(path, json=fields | {"model": "tiny"}).status_code == 200
    trusted = mixed.http.post(path, json=fields | {"model": "trusted"})
    assert trusted.status_code == 503


def test_what_scores_no_prompt_passes(mixed: Gateway) -> None:
    """An echo alone, and log-probabilities of the answer alone, cost nothing extra."""
    for fields in ({"echo": True}, {"logprobs": 2}, {"echo": False, "logprobs": 2}):
        reply = mixed.http.post(TEXT, json={"model": "far", "prompt": "a"} | fields)
        assert reply.status_code == 503


def test_scores_of_prompts_are_listed_where_unknown_fields_are(tmp_path: Path) -> None:
    """A gateway that reports what it leaves out leaves these out, too."""
    models = {"far": FAR, "tiny": {"model": "fake", "recipe": "int4", "fallback": ["far"]}}
    gateway = Gateway(tmp_path, {"unknown_parameters": "report", "models": models}, {})
    try:
        gateway.wait_ready()
        fields = bare() | {"prompt_logprobs": 1, "shout": 1}
        reply = gateway.http.post(CHAT, json=fields)
        assert (reply.status_code, reply.headers[IGNORED]) == (200, "shout, prompt_logprobs")
    finally:
        gateway.close()


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"messages": QUESTION, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": QUESTION, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (CHAT, {"messages": QUESTION, "prompt_logprobs": -1}, "prompt_logprobs"),
        (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (TEXT, {"prompt": "a", "logprobs": -1}, "logprobs"),
        (TEXT, {"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
        (CHAT, {"messages": QUESTION, "logprob_token_ids": [1]}, "logprob_token_ids"),
        (CHAT, {"messages": QUESTION, "echo": True}, "echo"),
    ],
)
def test_whole_vocabularies_are_refused(
    mixed: Gateway, path: str, fields: dict[str, Any], param: str
) -> None:
    """vLLM takes -1 for all tokens; at most 20 of a position pass, of any engine."""
    for model in ("tiny", "trusted"):
        reply = mixed.http.post(path, json=fields | {"model": model})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("kind", [ShadowRate, SideBySide, CanaryOrder, CompareRequest])
def test_operators_bodies_are_told_their_first_unknown_key(kind: type[ExactWire]) -> None:
    """Of 300,000 the first; to describe every one takes most of a second."""
    fields: dict[str, Any] = {f"k{number}": 1 for number in range(300_000)}
    lasted_s = []
    for _ in range(5):  # a busy machine may hold up some of them
        began = time.perf_counter()
        with pytest.raises(UnsupportedParameter, match="'k0' is not known here: use") as caught:
            validated(kind, fields)
        lasted_s.append(time.perf_counter() - began)
        assert caught.value.param == "k0"
    assert min(lasted_s) < 0.2
