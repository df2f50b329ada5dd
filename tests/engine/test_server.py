"""Tests of the engine's HTTP face, most of them through the official client."""

import http.client
import json
import logging
import math
import socket
import threading
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.engine.fakes import ANSWER, MESSAGES, MODEL, RunningEngine, body, post, wait_until


def events(response: httpx.Response) -> list[Any]:
    """Return the JSON of all events; the stream must end with [DONE]."""
    frames = response.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames[:-2]]


def test_a_plain_reply_is_complete(client: openai.OpenAI, engine: RunningEngine) -> None:
    """Text, finish reason, exact usage, fingerprint and identity are all there."""
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0)

    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].logprobs is None
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(engine.runner.answer) + 1
    assert reply.usage.prompt_tokens == len(engine.runner.batches[0][0])
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.system_fingerprint == "narrowgate-0123456789ab"
    assert (reply.object, reply.model) == ("chat.completion", MODEL)
    assert reply.id.startswith("chatcmpl-")


def test_a_stream_says_the_same_as_a_plain_reply(client: openai.OpenAI) -> None:
    """Role first, then text, then the finish reason; pieces add up to the whole."""
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, stream=True)
    )

    first, *_, last = chunks
    assert (first.choices[0].delta.role, first.choices[0].delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert last.choices[0].finish_reason == "stop"
    assert {chunk.choices[0].finish_reason for chunk in chunks[:-1]} == {None}
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert len(chunks) > 10


def test_usage_comes_last_and_is_null_before(engine: RunningEngine) -> None:
    """With include_usage every chunk has the key, only the last one a value."""
    options = {"include_usage": True}
    *chunks, last = events(post(engine, body(stream=True, stream_options=options)))

    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(engine.runner.answer) + 1
    without = events(post(engine, body(stream=True)))
    assert not [chunk for chunk in without if "usage" in chunk]
    assert [c["choices"] for c in without] == [c["choices"] for c in chunks]


def test_no_chunk_holds_half_a_character(engine: RunningEngine) -> None:
    """Umlauts and kanji, which take several tokens, arrive whole."""
    texts = [
        chunk["choices"][0]["delta"].get("content", "")
        for chunk in events(post(engine, body(stream=True)))
    ]

    assert "".join(texts) == ANSWER
    assert any("日" in text for text in texts)
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in texts)


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_cover_every_token(
    client: openai.OpenAI, engine: RunningEngine, stream: bool
) -> None:
    """One entry per token of the text, with bytes and as many alternatives as asked for."""
    if stream:
        chunks = client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            temperature=0,
            logprobs=True,
            top_logprobs=3,
            stream=True,
        )
        entries: Any = [
            entry
            for chunk in chunks
            if chunk.choices[0].logprobs
            for entry in chunk.choices[0].logprobs.content or []
        ]
    else:
        reply = client.chat.completions.create(
            model=MODEL, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=3
        )
        assert reply.choices[0].logprobs is not None
        entries = reply.choices[0].logprobs.content

    assert len(entries) == len(engine.runner.answer)
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == ANSWER
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)
        assert entry.logprob < 0
        assert sum(math.exp(other.logprob) for other in entry.top_logprobs) <= 1


def test_chosen_log_probabilities_alone(engine: RunningEngine) -> None:
    """logprobs without top_logprobs gives empty lists of alternatives."""
    reply = post(engine, body(logprobs=True, max_tokens=2)).json()

    entries = reply["choices"][0]["logprobs"]["content"]
    assert [entry["top_logprobs"] for entry in entries] == [[], []]


@pytest.mark.parametrize("stream", [False, True])
def test_limits_and_stop_strings_end_answers(engine: RunningEngine, stream: bool) -> None:
    """max_tokens gives length, a stop string gives stop and is not part of the text."""

    def answer(**fields: Any) -> tuple[str, str]:
        response = post(engine, body(stream=stream, **fields))
        if not stream:
            [choice] = response.json()["choices"]
            return choice["message"]["content"], choice["finish_reason"]
        choices = [chunk["choices"][0] for chunk in events(response)]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        return text, choices[-1]["finish_reason"]

    text, reason = answer(max_tokens=3)
    assert reason == "length"
    assert ANSWER.startswith(text)
    assert 0 < len(text) < len(ANSWER)
    assert answer(stop="brown f") == ("The quick ", "stop")
    assert answer(stop=["zzz", "über"]) == ("The quick brown fox ", "stop")
    assert answer(stop="dog.!") == (ANSWER, "stop")
    assert answer(max_tokens=256) == (ANSWER, "stop")


def test_a_seed_makes_sampling_repeatable(engine: RunningEngine) -> None:
    """The same seed gives the same answer among concurrent requests, another one another."""

    def ask(seed: int) -> str:
        sampling = {"temperature": 2, "seed": seed, "max_tokens": 12, "top_p": 0.98}
        reply = post(engine, body(**sampling)).json()
        return str(reply["choices"][0]["message"]["content"])

    expected = ask(1)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda seed=seed: found.append(ask(seed))) for seed in (1, 2, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found.count(expected) == 2


def test_models_info_and_health(client: openai.OpenAI, engine: RunningEngine) -> None:
    """The other endpoints of the contract have their keys."""
    [card] = client.models.list().data
    assert (card.id, card.owned_by) == (MODEL, "narrowgate")
    assert card.model_dump()["max_model_len"] == 256
    info = httpx.get(f"{engine.url}/engine/info").json()
    assert info["served_model_name"] == MODEL
    assert {"pid", "threads", "weight_bits", "schemes", "kernels", "dtype"} <= set(info)
    health = httpx.get(f"{engine.url}/health")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})


def test_other_models_and_paths_do_not_exist(client: openai.OpenAI, engine: RunningEngine) -> None:
    """Unknown names, paths and methods get the envelope, too."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    nowhere = httpx.get(f"{engine.url}/nowhere")
    assert (nowhere.status_code, nowhere.json()["error"]["code"]) == (404, "not_found")
    wrong = httpx.put(f"{engine.url}/v1/models")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("fault", "code"), [("raise", "internal_error"), ("nan", "broken_logits")])
def test_a_failing_step_is_a_500(
    engine: RunningEngine, stream: bool, fault: Any, code: str
) -> None:
    """A failure before the first token has its status, streamed or not; the engine lives on."""
    engine.runner.fault = fault
    response = post(engine, body(stream=stream))

    assert response.status_code == 500
    assert response.json()["error"]["code"] == code
    assert "secret" not in response.text
    engine.runner.fault = None
    assert post(engine, body()).status_code == 200


def test_a_step_that_fails_later_ends_the_stream_with_an_error(engine: RunningEngine) -> None:
    """Tokens sent stay valid; then comes an error event, and [DONE]."""
    engine.runner.delay_s = 0.05

    def break_it() -> None:
        wait_until(lambda: len(engine.runner.batches) > 4)
        engine.runner.fault = "raise"

    thread = threading.Thread(target=break_it)
    thread.start()
    response = post(engine, body(stream=True))
    thread.join()

    *chunks, last = events(response)
    assert response.status_code == 200
    assert len(chunks) > 2
    assert last["error"]["code"] == "internal_error"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_steps", [0, 5])
def test_a_client_that_leaves_stops_the_decoding(
    engine: RunningEngine, stream: bool, num_steps: int
) -> None:
    """Closing the connection ends the work within a step, even before the first byte."""
    engine.runner.delay_s = 0.1
    address = urlsplit(engine.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    connection.request("POST", "/v1/chat/completions", json.dumps(body(stream=stream)))
    wait_until(lambda: len(engine.runner.batches) > num_steps)
    connection.close()

    wait_until(lambda: engine.service.is_idle)
    assert len(engine.runner.batches) <= num_steps + 6 < len(engine.runner.answer)


def test_a_draining_engine_refuses_new_requests(engine: RunningEngine) -> None:
    """New requests get 503 with Retry-After, and health says why."""
    engine.service.is_draining = True

    response = post(engine, body())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
    assert 0 < int(response.headers["retry-after"]) <= 120
    health = httpx.get(f"{engine.url}/health")
    assert (health.status_code, health.json()) == (503, {"status": "draining"})


def test_a_stalled_engine_says_so(engine: RunningEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Health is about forward progress, not about answering HTTP."""
    monkeypatch.setattr("gateway.engine.service.STALLED_AFTER_S", 0.05)
    engine.runner.fault = "hang"
    with socket.create_connection((urlsplit(engine.url).hostname, urlsplit(engine.url).port)) as s:
        payload = json.dumps(body()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}"
        s.sendall(head.encode() + b"\r\n\r\n" + payload)
        wait_until(lambda: httpx.get(f"{engine.url}/health").json() == {"status": "stalled"})
        engine.runner.fault = None
        engine.runner.healed.set()
        assert b"200 OK" in s.recv(100)
    engine.runner.healed.clear()


def test_errors_are_logged_with_the_request(
    engine: RunningEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused request leaves the gateway's id in the log, but nothing that its client wrote."""
    name = "gateway.engine.server"
    caplog.set_level(logging.INFO, logger=name)
    url = f"{engine.url}/v1/chat/completions"
    sent = body(temperature="secret")
    for request_id, logged in (("id-1", "id-1"), ("a b", "-"), ("x" * 200, "-")):
        caplog.clear()
        reply = httpx.post(url, json=sent, headers={"x-request-id": request_id}, timeout=30)
        assert reply.status_code == 400
        lines = [record.getMessage() for record in caplog.records if record.name == name]
        assert lines == [f"request {logged}: 400 invalid_value, param 'temperature'"]


def test_a_failed_step_is_logged_with_the_request(
    engine: RunningEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The id that the gateway sent along stands in the line about the step."""
    engine.runner.fault = "raise"
    url = f"{engine.url}/v1/chat/completions"
    assert httpx.post(url, json=body(), headers={"x-request-id": "id-2"}).status_code == 500
    engine.runner.fault = None
    assert "a step failed, and with it the request(s) id-2" in caplog.messages


def test_a_trailing_slash_is_no_redirect(engine: RunningEngine) -> None:
    """Another path is 404, not a redirect to the Host that the client names."""
    reply = httpx.get(f"{engine.url}/health/", headers={"host": "evil.example"})
    assert reply.status_code == 404
