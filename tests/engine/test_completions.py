"""Tests of text completions through the official client and on the wire, on the scripted model."""

import json
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.engine.fakes import ANSWER, MODEL, PEAK, RunningEngine, post, wait_until

PROMPT = "Say it.<|im_start|>assistant\n"


def ask(engine: RunningEngine, prompt: Any = PROMPT, **fields: Any) -> Any:
    """Return a plain reply; greedy and long enough unless told otherwise."""
    base = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 100}
    response = post(engine, base | fields)
    assert response.status_code == 200, response.text
    return response.json()


def stream(engine: RunningEngine, prompt: Any = PROMPT, **fields: Any) -> list[Any]:
    """Return the events of a stream, [DONE] checked and taken off."""
    base = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 100, "stream": True}
    *frames, done, end = post(engine, base | fields).text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def test_a_plain_reply_is_complete(client: openai.OpenAI, engine: RunningEngine) -> None:
    """Text, reason, usage and identity, in OpenAI's form of text completions."""
    reply = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0, max_tokens=100)

    [choice] = reply.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (ANSWER, "stop", None)
    assert (reply.object, reply.model) == ("text_completion", MODEL)
    assert reply.id.startswith("cmpl-")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(engine.tokenizer.encode(PROMPT))
    assert reply.usage.completion_tokens == len(engine.runner.answer) + 1


def test_the_default_limit_is_sixteen_tokens(client: openai.OpenAI) -> None:
    """As OpenAI has it for this route."""
    reply = client.completions.create(model=MODEL, prompt=PROMPT, temperature=0)

    assert reply.usage is not None
    assert reply.usage.completion_tokens == 16
    assert reply.choices[0].finish_reason == "length"


def test_every_form_of_prompt_gives_its_answers_in_order(engine: RunningEngine) -> None:
    """Text, texts, ids and lists of ids mean the same; choices come in the prompts' order."""
    ids = engine.tokenizer.encode(PROMPT)
    assert ask(engine, ids)["choices"] == ask(engine)["choices"]
    for prompts in (
        [PROMPT, PROMPT + "Th", PROMPT],
        [ids, engine.tokenizer.encode(PROMPT + "Th"), ids],
    ):
        reply = ask(engine, prompts, n=2, max_tokens=9)
        assert [choice["index"] for choice in reply["choices"]] == list(range(6))
        texts = [choice["text"] for choice in reply["choices"]]
        assert (
            texts[0]
            == texts[1]
            == texts[4]
            == texts[5]
            == ask(engine, max_tokens=9)["choices"][0]["text"]
        )
        assert texts[2] == texts[3] != texts[0]
        lengths = [
            len(prompt if isinstance(prompt, list) else engine.tokenizer.encode(prompt))
            for prompt in prompts
        ]
        assert reply["usage"]["prompt_tokens"] == sum(lengths)
        assert reply["usage"]["completion_tokens"] == 6 * 9


def test_a_stream_says_the_same_as_a_plain_reply(client: openai.OpenAI) -> None:
    """Pieces add up, the last one has the reason, and usage comes where asked for."""
    options: Any = {"include_usage": True}
    *chunks, last = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        temperature=0,
        max_tokens=100,
        stream=True,
        stream_options=options,
    )

    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 10


def test_several_choices_share_a_stream(engine: RunningEngine) -> None:
    """Each choice has its own text and one end."""
    events = stream(engine, [PROMPT, PROMPT + "Th"], n=2)

    texts, ends = [""] * 4, [0] * 4
    for event in events:
        [choice] = event["choices"]
        texts[choice["index"]] += choice["text"]
        ends[choice["index"]] += choice["finish_reason"] is not None
    assert texts[:2] == [ANSWER] * 2
    assert ends == [1] * 4


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("as_ids", [True, False])
def test_echo_with_logprobs_scores_the_prompt(
    engine: RunningEngine, max_tokens: int, as_ids: bool
) -> None:
    """The form that lm-eval reads: one entry a prompt token, null first, chosen ones in top."""
    prompt = PROMPT + ANSWER[:20]
    ids = engine.tokenizer.encode(prompt)
    reply = ask(engine, ids if as_ids else prompt, echo=True, logprobs=1, max_tokens=max_tokens)

    [choice] = reply["choices"]
    found = choice["logprobs"]
    assert {len(values) for values in found.values()} == {len(ids) + max_tokens}
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    row = torch.linspace(0, 1, 320)
    row[engine.runner.answer[0]] = PEAK
    start = len(engine.tokenizer.encode(PROMPT))
    assert found["token_logprobs"][start] == pytest.approx(
        float(row.log_softmax(0).max()), abs=1e-5
    )
    for value, top in zip(
        found["token_logprobs"][start:], found["top_logprobs"][start:], strict=True
    ):
        assert value == max(top.values())  # exactly: lm-eval compares them
    offsets = found["text_offset"]
    assert offsets[0] == 0
    assert [choice["text"][at] for at in offsets[start:-1]] == [
        token[0] for token in found["tokens"][start:-1]
    ]
    assert choice["text"].startswith(prompt)
    assert choice["finish_reason"] == "length"
    assert reply["usage"]["completion_tokens"] == max_tokens


def test_the_end_token_has_an_entry(engine: RunningEngine) -> None:
    """Cutting off the last entry never cuts off one of the prompt."""
    reply = ask(engine, PROMPT + ANSWER, echo=True, logprobs=1, max_tokens=1)

    [choice] = reply["choices"]
    assert choice["finish_reason"] == "stop"
    expected = len(engine.tokenizer.encode(PROMPT + ANSWER)) + 1
    assert len(choice["logprobs"]["token_logprobs"]) == expected


def test_echo_alone_repeats_the_prompt(engine: RunningEngine) -> None:
    """Plain and streamed, without any scoring."""
    assert ask(engine, echo=True)["choices"][0]["text"] == PROMPT + ANSWER
    events = stream(engine, echo=True)
    assert "".join(event["choices"][0]["text"] for event in events) == PROMPT + ANSWER


def test_long_prompts_are_scored_chunk_by_chunk(engine: RunningEngine) -> None:
    """Borders of chunks leave no gap: one read in many steps scores as one read in few."""
    prompt = "x" * 150 + PROMPT
    whole = ask(engine, prompt, echo=True, logprobs=2, max_tokens=0)["choices"][0]["logprobs"]

    ids = engine.tokenizer.encode(prompt)
    assert len(engine.runner.batches) > 1
    row = torch.linspace(0, 1, 320)
    row[engine.runner.answer[0]] = PEAK
    assert len(whole["token_logprobs"]) == len(ids) > 128


def test_prompt_logprobs_are_vllms(engine: RunningEngine) -> None:
    """By token id, with rank and text; null for the first token; chat has them, too."""
    [choice] = ask(engine, prompt_logprobs=2, max_tokens=1)["choices"]
    ids = engine.tokenizer.encode(PROMPT)

    assert choice["prompt_logprobs"][0] is None
    for token_id, entry in zip(ids[1:], choice["prompt_logprobs"][1:], strict=True):
        assert entry[str(token_id)]["rank"] >= 1
        assert sorted(item["rank"] for item in entry.values())[:2] == [1, 2]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 0}
    reply = post(engine, chat | {"max_tokens": 1}).json()
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]


def test_one_broken_row_of_a_prompt_is_an_error(engine: RunningEngine) -> None:
    """A row that is no number in the midst of a scored prompt is never passed off as null."""
    ids = engine.tokenizer.encode(PROMPT)
    engine.runner.faulty_ids = frozenset({ids[len(ids) // 2]})
    engine.runner.fault = "nan_row"
    fields = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 1}
    for asked in ({"prompt_logprobs": 0}, {"echo": True, "logprobs": 1}):
        reply = post(engine, fields | asked)
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "broken_logits")
    assert post(engine, fields).status_code == 200  # without scores that row is not looked at


@pytest.mark.parametrize("is_stream", [False, True])
def test_token_ids_are_returned_under_vllms_names(engine: RunningEngine, is_stream: bool) -> None:
    """Ids of prompt and answer, the end token included, on both routes."""
    answer = [*engine.runner.answer, engine.runner.eos]
    prompt = engine.tokenizer.encode(PROMPT)
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    if not is_stream:
        [choice] = ask(engine, return_token_ids=True)["choices"]
        assert (choice["prompt_token_ids"], choice["token_ids"]) == (prompt, answer)
        reply = post(engine, chat | {"return_token_ids": True}).json()
        assert len(reply["prompt_token_ids"]) == reply["usage"]["prompt_tokens"]
        assert reply["choices"][0]["token_ids"] == answer
        return
    events = stream(engine, return_token_ids=True)
    assert events[0]["choices"][0]["prompt_token_ids"] == prompt
    assert [i for event in events for i in event["choices"][0]["token_ids"]] == answer
    text = post(engine, chat | {"return_token_ids": True, "stream": True}).text
    frames = [json.loads(frame[6:]) for frame in text.split("\n\n")[:-2]]
    assert len(frames[0]["prompt_token_ids"]) > 3
    assert [i for frame in frames for i in frame["choices"][0].get("token_ids", [])] == answer


def test_answers_of_one_chat(client: openai.OpenAI, engine: RunningEngine) -> None:
    """n seeded answers differ from one another, repeat as a whole, and share the prompt."""
    chat: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    sampling: dict[str, Any] = {"temperature": 2, "seed": 3, "n": 3, "max_tokens": 12}
    first, again = (client.chat.completions.create(**chat, **sampling) for _ in range(2))
    alone = client.chat.completions.create(**chat, **sampling | {"n": 1})

    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert texts[0] == alone.choices[0].message.content
    assert first.usage is not None
    assert alone.usage is not None
    assert first.usage.prompt_tokens == alone.usage.prompt_tokens
    chunks = list(client.chat.completions.create(**chat, **sampling, stream=True))
    streamed = [
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == index)
        for index in range(3)
    ]
    assert streamed == texts


def test_stop_tokens_and_ignored_ends(engine: RunningEngine) -> None:
    """stop_token_ids end an answer unseen; ignore_eos goes on; min_tokens holds all ends off."""
    third = engine.runner.answer[2]
    reply = ask(engine, stop_token_ids=[third])
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["completion_tokens"] == 3
    assert ANSWER.startswith(reply["choices"][0]["text"])
    assert ask(engine, ignore_eos=True, max_tokens=90)["usage"]["completion_tokens"] == 90
    held = ask(engine, stop=["The"], min_tokens=4)
    assert held["choices"][0]["text"] == ANSWER
    assert ask(engine, stop=["quick"], min_tokens=1)["choices"][0]["text"] == "The "


def test_a_client_that_leaves_stops_every_choice(engine: RunningEngine) -> None:
    """Closing a stream ends all its sequences."""
    engine.runner.delay_s = 0.02
    body = {"model": MODEL, "prompt": [PROMPT] * 2, "n": 2, "max_tokens": 200, "stream": True}
    body |= {"ignore_eos": True}
    with httpx.stream("POST", f"{engine.url}/v1/completions", json=body, timeout=30) as reply:
        # Kept until the block ends: an iterator that is let go closes the connection.
        lines = reply.iter_lines()
        next(lines)
        assert engine.service.loop.num_unfinished == 4
    wait_until(lambda: engine.service.is_idle)
    assert len(engine.runner.batches) < 100
