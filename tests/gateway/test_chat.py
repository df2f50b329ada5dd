"""The main path: plain and streamed chat through a real gateway and a real child process."""

import concurrent.futures
import json
from typing import Any

import pytest

from tests.gateway.harness import CHAT, QUESTION, Gateway, body, eventually, resident_bytes


def test_plain_chat(gateway: Gateway) -> None:
    """The official client gets text, finish reason and usage."""
    reply = gateway.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "one two"}], max_tokens=3
    )
    assert reply.choices[0].message.content == " aaa aab aac"
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 3)


def test_streamed_chat(gateway: Gateway) -> None:
    """The official client gets every token and the finish reason, and no unasked usage."""
    stream = gateway.openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "one two"}], max_tokens=3, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == " aaa aab aac"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_streamed_chat_with_usage(gateway: Gateway) -> None:
    """A client that asks for usage gets it last, and null before."""
    stream = gateway.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "one two"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 6
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)


def test_stream_ends_with_done_once(gateway: Gateway) -> None:
    """A stream ends with one [DONE], also where an engine forgets it."""
    for with_done in (True, False):
        with gateway.stream({"with_done": with_done}) as response:
            text = response.read().decode()
        assert text.count("data: [DONE]") == 1
        assert text.endswith("data: [DONE]\n\n")


def test_names_and_variant_header(gateway: Gateway) -> None:
    """The alias and the pinned variant reach the same engine, and the reply names the variant."""
    for name in ("tiny", "tiny@int4"):
        reply = gateway.http.post(CHAT, json=body() | {"model": name})
        assert reply.headers["x-narrowgate-variant"] == "int4"
        assert reply.json()["model"] == "tiny@int4"


def test_unknown_fields_reach_the_engine_unchanged(gateway: Gateway) -> None:
    """The body is forwarded as it came: unknown keys, big integers, floats and odd text."""
    odd = {"seed": 2**63 - 1, "temperature": 0.1, "user": "é\u2028\x00", "fake": {"tokens": 2}}
    reply = gateway.http.post(CHAT, json=body() | odd)
    assert reply.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("sent", ["abc-1", "x" * 128])
def test_sane_request_id_is_kept(gateway: Gateway, sent: str) -> None:
    """A client's own request id comes back."""
    reply = gateway.http.get("/health", headers={"x-request-id": sent})
    assert reply.headers["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", "x" * 129, "a b", "\u00e9"])
def test_odd_request_id_is_replaced(gateway: Gateway, sent: str) -> None:
    """An id that could harm a log is replaced by one of ours."""
    reply = gateway.http.get("/health", headers=[(b"x-request-id", sent.encode("latin-1"))])
    assert len(reply.headers["x-request-id"]) == 32


def test_models(gateway: Gateway) -> None:
    """Both names are listed with what was done to the model; the client library can read it."""
    assert [model.id for model in gateway.openai.models.list()] == ["tiny", "tiny@int4"]
    card: dict[str, Any] = gateway.http.get("/v1/models/tiny@int4").json()
    expected = {
        "object": "model",
        "owned_by": "narrowgate",
        "variant": "int4",
        "recipe": "int4",
        "recipe_digest": "0" * 64,
        "weight_bits": 4.5,
        "weights_bytes": 1000,
        "weights_uncompressed_bytes": 4000,
        "max_model_len": 4096,
        "schemes": {"int4-g32-asym": 2, "none": 1},
        "kernels": {"int4-g32-asym": "fake"},
        "state": "ready",
    }
    assert expected.items() <= card.items()
    assert gateway.http.get("/v1/models/tiny").json() == card | {"id": "tiny"}


def test_probes_and_version(gateway: Gateway) -> None:
    """Liveness, readiness and version answer."""
    assert gateway.http.get("/health").json() == {"status": "ok"}
    ready = gateway.http.get("/ready").json()
    assert ready == {"status": "ready", "models": {"tiny@int4": "ready"}}
    assert gateway.http.get("/version").json()["version"]


def test_openapi_describes_the_chat_body(gateway: Gateway) -> None:
    """The published schema resolves: every reference in it exists."""
    document = gateway.http.get("/openapi.json").json()
    text = json.dumps(document)
    names = {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert "Message" in names
    assert names <= set(document["components"]["schemas"])


def test_streams_do_not_mix(gateway: Gateway) -> None:
    """Many streams at once each get exactly their own tokens."""

    def read(tokens: int) -> int:
        with gateway.stream({"tokens": tokens, "pace_s": 0.001}) as response:
            return response.read().decode().count('"delta":{"content"')

    sizes = list(range(20, 36))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert list(pool.map(read, sizes)) == sizes


def test_memory_stays_small(gateway: Gateway) -> None:
    """The gateway process needs less than 150 MB, after a long answer in one burst, too."""
    with gateway.stream({"tokens": 20000, "write_all_at_once": True}) as response:
        assert response.read().count(b'"delta":{"content"') == 20000
    assert resident_bytes(gateway.process.pid) < 150e6


def test_messages_of_many_kinds_are_accepted(gateway: Gateway) -> None:
    """Text parts, silent assistants with tool calls and tool replies pass."""
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
        *QUESTION,
    ]
    assert gateway.http.post(CHAT, json=body() | {"messages": messages}).status_code == 200


def test_text_completions_pass_through(gateway: Gateway) -> None:
    """Plain and streamed text reaches the client, and is counted as an operation of its own."""
    create = gateway.openai.completions.create
    before = gateway.metric("requests_total", operation="completion")
    plain = create(model="tiny", prompt="one two", max_tokens=3)
    chunks = list(create(model="tiny", prompt="one two", max_tokens=3, stream=True))

    assert plain.choices[0].text == " aaa aab aac"
    assert plain.usage is not None
    assert plain.usage.prompt_tokens == 2
    assert "".join(chunk.choices[0].text for chunk in chunks) == " aaa aab aac"
    assert chunks[-1].choices[0].finish_reason == "length"
    eventually(lambda: gateway.metric("requests_total", operation="completion") == before + 2)
    wrong = gateway.http.post("/v1/completions", json={"model": "tiny", "prompt": 5})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "prompt")


def test_a_text_completion_that_is_left_is_cancelled(gateway: Gateway) -> None:
    """Leaving a stream stops the engine's decoding on this route, too."""
    body = {"model": "tiny", "prompt": "x", "stream": True, "max_tokens": 1000}
    fake = {"tokens": 1000, "pace_s": 0.05}
    before = gateway.engine_state()["cancelled"]
    with gateway.http.stream("POST", "/v1/completions", json=body | {"fake": fake}) as response:
        next(response.iter_lines())
    eventually(lambda: gateway.engine_state()["cancelled"] == before + 1)
