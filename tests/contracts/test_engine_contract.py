"""What every engine must do; the gateway relies on nothing else."""

import json
import time
from typing import Any

import httpx
import openai
import pytest

from gateway.protocol import EngineInfo, Usage
from tests.contracts.conftest import VLLM

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


class Client:
    """Talks to one engine."""

    def __init__(self, url: str) -> None:
        self.url = url
        cards = httpx.get(f"{url}/v1/models").json()["data"]
        self.name: str = cards[-1]["id"]  # a gateway lists the alias before the variant

    def post(self, **fields: Any) -> httpx.Response:
        """Send a chat request; greedy and short unless told otherwise."""
        return httpx.post(self.url + CHAT, json=self.body(**fields), timeout=60)

    def plain(self, **fields: Any) -> dict[str, Any]:
        """Return a plain reply."""
        reply = self.post(**fields)
        assert reply.status_code == 200, reply.text
        content: dict[str, Any] = reply.json()
        return content

    def stream(self, **fields: Any) -> list[dict[str, Any]]:
        """Return the events of a streamed reply, [DONE] checked and taken off."""
        reply = self.post(stream=True, **fields)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"].startswith("text/event-stream")
        *frames, done, end = reply.text.split("\n\n")
        assert (done, end) == ("data: [DONE]", "")
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]

    def body(self, **fields: Any) -> dict[str, Any]:
        """Return a request's body."""
        base = {"model": self.name, "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
        return base | fields


@pytest.fixture(scope="session")
def engine(engine_url: str) -> Client:
    """Return a client of the engine."""
    return Client(engine_url)


def test_health(engine: Client) -> None:
    """A ready engine is well."""
    reply = httpx.get(f"{engine.url}/health")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


def test_models(engine: Client) -> None:
    """It lists the model it serves, with its context length."""
    listed = httpx.get(f"{engine.url}/v1/models").json()
    assert listed["object"] == "list"
    (card,) = (each for each in listed["data"] if each["id"] == engine.name)
    assert (card["object"], card["owned_by"]) == ("model", "narrowgate")
    assert isinstance(card["created"], int)
    assert card["max_model_len"] > 0


def test_info(engine: Client) -> None:
    """It describes its live self, and every key is there."""
    reply = httpx.get(f"{engine.url}/engine/info")
    if reply.status_code == 404:
        pytest.skip("a gateway shows it in its list of models instead")
    info = EngineInfo.model_validate_json(reply.content)
    not_all = {"recipe_digest", "kv_scheme", "kv_layers"}
    not_all |= {"source_digest", "recorded_schemes", "fidelity"}  # only of an artifact
    not_all |= {"vocab_size"}  # only where whole distributions can be kept
    not_all |= {"reads_with", "program"}  # only of an engine that reads fixed texts
    assert None not in info.model_dump(exclude=not_all).values()
    assert info.served_model_name == engine.name
    assert 0 < (info.weights_bytes or 0) <= (info.weights_bytes_before or 0)
    assert 0 < (info.weight_bits or 0) <= 32
    assert (info.recipe == "full") == (info.recipe_digest is None)
    assert sum((info.schemes or {}).values()) > 0
    assert (info.pid or 0) > 0


def test_plain_reply(engine: Client) -> None:
    """A plain reply has every required key, and its counts add up."""
    reply = engine.plain()
    assert reply["object"] == "chat.completion"
    assert (reply["model"], isinstance(reply["created"], int)) == (engine.name, True)
    assert reply["system_fingerprint"].startswith(("narrowgate-", "vllm-"))
    (choice,) = reply["choices"]
    assert choice["index"] == 0
    assert choice["message"]["role"] == "assistant"
    assert isinstance(choice["message"]["content"], str)
    assert choice["logprobs"] is None
    assert choice["finish_reason"] in {"stop", "length"}
    usage = reply["usage"]
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["completion_tokens"] <= 8
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_stream_equals_plain(engine: Client) -> None:
    """A stream starts with the role, ends with the finish reason and carries the same text."""
    first, *middle, last = engine.stream()
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["choices"][0]["finish_reason"] is None
    assert all(event["id"] == first["id"] for event in [*middle, last])
    assert all(event["choices"][0]["finish_reason"] is None for event in middle)
    assert all("usage" not in event for event in [first, *middle, last])
    plain = engine.plain()["choices"][0]
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in [*middle, last])
    assert text == plain["message"]["content"]
    assert last["choices"][0]["finish_reason"] == plain["finish_reason"]


def test_stream_with_usage(engine: Client) -> None:
    """Asked for usage, every chunk has the key, null until the last one."""
    *events, last = engine.stream(stream_options={"include_usage": True})
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    usage = Usage.model_validate(last["usage"])
    assert usage == Usage.model_validate(engine.plain()["usage"])
    assert usage.completion_tokens > 0


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_limits(engine: Client, key: str) -> None:
    """Either limit cuts the answer and says so."""
    reply = engine.plain(**{"max_tokens": None, key: 1})
    assert reply["usage"]["completion_tokens"] == 1
    assert reply["choices"][0]["finish_reason"] == "length"


def test_greedy_is_deterministic(engine: Client) -> None:
    """The same greedy request gives the same text."""
    assert engine.plain()["choices"] == engine.plain()["choices"]


def test_seed_is_deterministic(engine: Client) -> None:
    """The same seed gives the same sample."""
    sampling = {"temperature": 1.0, "top_p": 0.9, "top_k": 20, "seed": 7}
    assert engine.plain(**sampling)["choices"] == engine.plain(**sampling)["choices"]


def test_stop_strings(engine: Client) -> None:
    """The answer ends before a stop string, plain and streamed, and never shows it."""
    text = engine.plain()["choices"][0]["message"]["content"]
    stop = text[len(text) // 2 :][:2]
    assert stop
    for given in (stop, [stop, "never-there"]):
        choice = engine.plain(stop=given)["choices"][0]
        assert stop not in choice["message"]["content"]
        assert choice["finish_reason"] == "stop"
        events = engine.stream(stop=given)
        streamed = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        assert streamed == choice["message"]["content"]


def test_logprobs(engine: Client) -> None:
    """Each token has its log-probability and as many alternatives as asked for."""
    reply = engine.plain(logprobs=True, top_logprobs=3, max_tokens=2)
    tokens = reply["choices"][0]["logprobs"]["content"]
    assert 0 < len(tokens) <= 2
    for token in tokens:
        assert set(token) == {"token", "logprob", "bytes", "top_logprobs"}
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 3
        values = [entry["logprob"] for entry in token["top_logprobs"]]
        assert values == sorted(values, reverse=True)
    bare = engine.plain(logprobs=True, max_tokens=1)["choices"][0]["logprobs"]["content"]
    assert bare[0]["top_logprobs"] == []


def test_ignored_parameters(engine: Client) -> None:
    """Parameters without effect, and defaults of unsupported ones, are accepted."""
    fields = {"user": "u", "metadata": {"a": "b"}, "store": False, "n": 1, "presence_penalty": 0}
    assert engine.plain(**fields)["choices"] == engine.plain()["choices"]


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"n": 0}, "n", "invalid_value"),
    ({"presence_penalty": 2.5}, "presence_penalty", "invalid_value"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": "word " * 200_000}]},
        "messages",
        "context_length_exceeded",
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fields", "param", "code"), REFUSALS)
def test_refusals(
    engine: Client, fields: dict[str, Any], param: str, code: str, stream: bool
) -> None:
    """What cannot be done is refused before any stream, in the full envelope."""
    reply = engine.post(stream=stream, **fields)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


@pytest.mark.parametrize("stream", [False, True])
def test_text_completion(engine: Client, stream: bool) -> None:
    """A prompt is written on, in OpenAI's form of text completions."""
    fields = {"model": engine.name, "prompt": "one two", "max_tokens": 4, "temperature": 0}
    reply = httpx.post(f"{engine.url}/v1/completions", json=fields | {"stream": stream}, timeout=60)
    assert reply.status_code == 200
    if not stream:
        whole = reply.json()
        assert whole["object"] == "text_completion"
        assert whole["choices"][0]["finish_reason"] in {"stop", "length"}
        assert 0 < whole["usage"]["completion_tokens"] <= 4
        return
    *frames, done, end = reply.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    events = [json.loads(frame.removeprefix("data: ")) for frame in frames]
    assert all(isinstance(event["choices"][0]["text"], str) for event in events)
    assert events[-1]["choices"][0]["finish_reason"] in {"stop", "length"}


def test_body_that_is_no_json(engine: Client) -> None:
    """A broken body is 400, and the engine goes on."""
    headers = {"content-type": "application/json"}
    reply = httpx.post(engine.url + CHAT, content=b"{", headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")
    assert engine.plain()["choices"]


def test_client_that_leaves(engine: Client) -> None:
    """A stream that is left does not keep the next request waiting."""
    content = engine.body(stream=True, max_tokens=200)
    with httpx.stream("POST", engine.url + CHAT, json=content, timeout=60) as reply:
        next(reply.iter_lines())
    started = time.monotonic()
    assert engine.plain(max_tokens=1)["usage"]["completion_tokens"] == 1
    assert time.monotonic() - started < 5


def test_tokenize_and_back(engine: Client) -> None:
    """A text becomes ids with their count, and the ids become the text again."""
    fields = {"model": engine.name, "prompt": "one two three", "add_special_tokens": False}
    found = httpx.post(f"{engine.url}/tokenize", json=fields).json()
    assert found["count"] == len(found["tokens"]) > 0
    assert found["max_model_len"] > 0
    back = {"model": engine.name, "tokens": found["tokens"]}
    assert httpx.post(f"{engine.url}/detokenize", json=back).json() == {"prompt": "one two three"}


def test_tokenize_a_conversation(engine: Client) -> None:
    """Messages become ids with their spelling if asked for; an id below zero is refused."""
    fields = {"model": engine.name, "messages": MESSAGES, "return_token_strs": True}
    found = httpx.post(f"{engine.url}/tokenize", json=fields).json()
    assert len(found["token_strs"]) == found["count"]
    refused = httpx.post(f"{engine.url}/detokenize", json={"model": engine.name, "tokens": [-1]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens.0")


@pytest.mark.parametrize("engine_url", [VLLM], indirect=True)
def test_the_demo_answers(engine_url: str) -> None:
    """What `make vllm-demo` promises: the official client asks a question and is answered."""
    client = openai.OpenAI(base_url=f"{engine_url}/v1", api_key="unused")
    reply = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
    )
    assert "Paris" in (reply.choices[0].message.content or "")
