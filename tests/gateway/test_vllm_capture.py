"""Capture on vLLM's frames: the client sees what it would have seen, and all numbers are taken."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.shadow.records import Captured, TooLong
from gateway.shadow.vllm_capture import VllmCapture
from gateway.upstream import EngineClient
from tests.gateway import vllm_frames
from tests.gateway.vllm_frames import (
    CHAT_PROMPT,
    CHAT_TOKENS,
    LOGPROBS,
    TEXT_PROMPT,
    TEXT_TOKENS,
    chat_body,
    chat_stream,
    text_body,
    text_stream,
)

CHAT: dict[str, Any] = {"model": "x", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "x", "prompt": "The capital of France is"}


def result_of(capture: VllmCapture) -> Captured | None:
    """Return what a capture has, without any engine to ask."""

    async def ask() -> Captured | None:
        client = EngineClient("http://127.0.0.1:9", served_name="x", read_timeout_s=1)
        found = await capture.result(client)
        await client.aclose()
        return found

    return asyncio.run(ask())


def passed(
    fields: dict[str, Any], events: Sequence[bytes], *, top: int = 3
) -> tuple[bytes, Captured | None]:
    """Return what a client sees of these events, and what was captured."""
    capture = VllmCapture(top=top, max_tokens=4096)
    assert capture.fields(fields) != fields
    seen = b"".join(map(capture.pass_on, events))
    return seen, result_of(capture)


def test_it_asks_for_ids_and_keeps_the_rest() -> None:
    """Chats and texts are asked for log-probabilities in their own words, all by token id."""
    ids = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    asked = VllmCapture(top=7, max_tokens=4096).fields(CHAT | {"seed": 1})
    assert asked == CHAT | {"seed": 1, "logprobs": True, "top_logprobs": 7} | ids
    assert VllmCapture(top=7, max_tokens=4096).fields(TEXT) == TEXT | {"logprobs": 7} | ids
    assert VllmCapture(max_tokens=4096).headers() == {}


@pytest.mark.parametrize(
    ("fields", "captured", "plain", "prompt", "tokens"),
    [
        (CHAT, chat_stream(captured=True), chat_stream(captured=False), CHAT_PROMPT, CHAT_TOKENS),
        (TEXT, text_stream(captured=True), text_stream(captured=False), TEXT_PROMPT, TEXT_TOKENS),
        (CHAT, [chat_body(captured=True)], [chat_body(captured=False)], CHAT_PROMPT, CHAT_TOKENS),
        (TEXT, [text_body(captured=True)], [text_body(captured=False)], TEXT_PROMPT, TEXT_TOKENS),
    ],
    ids=["chat stream", "text stream", "chat", "text"],
)
def test_the_client_sees_the_same_bytes(
    fields: dict[str, Any],
    captured: list[bytes],
    plain: list[bytes],
    prompt: list[int],
    tokens: list[tuple[int, str]],
) -> None:
    """Byte for byte the reply to the request that was not changed, and every token was noted."""
    seen, found = passed(fields, captured)
    assert seen == b"".join(plain)
    assert found is not None
    assert found.prompt_token_ids == tuple(prompt)
    assert [each.token_id for each in found.positions] == [token_id for token_id, _ in tokens]
    for position, logprobs in zip(found.positions, LOGPROBS, strict=True):
        assert position.logprob == next(iter(logprobs.values()))
        assert list(position.top.values()) == list(logprobs.values())


@pytest.mark.parametrize("is_stream", [True, False])
def test_no_more_is_held_than_is_scored(is_stream: bool) -> None:
    """Beyond the limit all is let go at once, the client sees the same, and the end says why."""
    num_tokens = len(CHAT_PROMPT) + len(CHAT_TOKENS)
    plain = chat_stream(captured=False) if is_stream else [chat_body(captured=False)]
    events = chat_stream(captured=True) if is_stream else [chat_body(captured=True)]
    for limit in (num_tokens, num_tokens - 1, len(CHAT_PROMPT), len(CHAT_PROMPT) - 1):
        capture = VllmCapture(top=3, max_tokens=limit)
        capture.fields(CHAT)
        held = 0
        seen = b""
        for event in events:
            seen += capture.pass_on(event)
            held = max(held, len(capture._positions) + len(capture._prompt_token_ids))
        assert seen == b"".join(plain)
        assert held <= limit
        if limit == num_tokens:
            assert result_of(capture) is not None
            continue
        assert (capture._positions, capture._prompt_token_ids) == ([], ())
        with pytest.raises(TooLong) as told:
            result_of(capture)
        assert told.value.num_prompt_tokens == len(CHAT_PROMPT)


def test_ids_that_were_asked_for_stay() -> None:
    """A client that asked for token ids gets them, and no log-probabilities."""
    seen, found = passed(CHAT | {"return_token_ids": True}, chat_stream(captured=True))
    assert seen == b"".join(chat_stream(captured=False, shows_ids=True))
    assert found is not None


@pytest.mark.parametrize("shows_ids", [False, True])
def test_tokens_that_a_parser_keeps_back_are_noted(shows_ids: bool) -> None:
    """vLLM sends empty events for them to those who ask for ids only; their numbers count."""
    fields = CHAT | {"return_token_ids": True} if shows_ids else CHAT
    seen, found = passed(fields, chat_stream(captured=True, kept_back=2))
    assert seen == b"".join(chat_stream(captured=False, kept_back=2, shows_ids=shows_ids))
    assert found is not None
    assert len(found.positions) == 3


def test_top_tokens_are_the_likeliest_in_their_order() -> None:
    """The drawn token comes first on the wire; its rank is its own, the last one is not trusted."""

    def position(logprobs: dict[int, float]) -> dict[int, float]:
        token_id = next(iter(logprobs))
        top = [{"token": f"token_id:{each}", "logprob": logprobs[each]} for each in logprobs]
        content = [top[0] | {"top_logprobs": top}]
        choice = {"index": 0, "logprobs": {"content": content}, "token_ids": [token_id]}
        reply = {"choices": [choice], "prompt_token_ids": [1]}
        _, found = passed(CHAT, [json.dumps(reply).encode()])
        assert found is not None
        assert found.positions[0].logprob == logprobs[token_id]
        return dict(found.positions[0].top)

    assert list(position({5: -2.0, 6: -0.5, 7: -3.0})) == [6, 5, 7]
    assert list(position({5: -9.0, 6: -0.5, 7: -3.0})) == [6, 7]


@pytest.mark.parametrize(
    "extra",
    [
        {"logprobs": True},
        {"prompt_logprobs": 0},
        {"logprob_token_ids": [1]},
        {"n": 2},
        {"best_of": 2},
        {"echo": True},
        {"use_beam_search": True},
        {"guided_regex": "a+"},
        {"structured_outputs": {"regex": "a+"}},
        {"response_format": {"type": "json_object"}},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"prompt": ["one", "two"]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_some_requests_are_left_alone(extra: dict[str, Any]) -> None:
    """What has no numbers of the model's own, or not one answer to text, is passed unchanged."""
    fields = (TEXT if "prompt" in extra else CHAT) | extra
    capture = VllmCapture(max_tokens=4096)
    assert capture.fields(fields) == fields
    events = chat_stream(captured=True)
    assert [capture.pass_on(event) for event in events] == events
    assert result_of(capture) is None


@pytest.mark.parametrize(
    "extra",
    [
        {"logprobs": None, "n": 1, "echo": False, "response_format": {"type": "text"}},
        {"tool_choice": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
    ],
)
def test_harmless_fields_do_not_keep_it_off(extra: dict[str, Any]) -> None:
    """Values that ask for nothing, free tool calls and parts of text are captured."""
    assert "return_token_ids" in VllmCapture(max_tokens=4096).fields(CHAT | extra)


def test_token_ids_of_one_prompt_are_no_list_of_prompts() -> None:
    """A prompt of ids is one prompt, as is a list with one."""
    for prompt in ([1, 2, 3], [[1, 2, 3]], ["a"]):
        assert "return_token_ids" in VllmCapture(max_tokens=4096).fields(TEXT | {"prompt": prompt})


def masked(event: bytes) -> bytes:
    """Return an event in which a grammar forbade the last candidate."""
    return event.replace(b'"logprob":-3.223951816558838', b'"logprob":-9999.0')


@pytest.mark.parametrize(
    "spoil",
    [
        masked,
        lambda event: event.replace(b'"token":"token_id:60"', b'"token":"L"'),
        lambda event: event.replace(b'"token_ids":[60]', b'"token_ids":[61]'),
        lambda event: event.replace(b'"prompt_token_ids":[1,', b'"prompt_token_ids":["a",'),
        lambda event: event.replace(b'"top_logprobs"', b'"tops"'),
    ],
    ids=["grammar", "token as text", "other ids", "odd prompt", "no candidates"],
)
def test_doubtful_numbers_are_not_captured(spoil: Any) -> None:
    """One position that cannot be trusted spoils the capture, never what the client sees."""
    spoilt = [spoil(event) for event in chat_stream(captured=True)]
    assert spoilt != chat_stream(captured=True)
    seen, found = passed(CHAT, spoilt)
    assert seen == b"".join(chat_stream(captured=False))
    assert found is None


def test_an_engine_that_tells_nothing_gives_nothing() -> None:
    """Replies without the fields pass as they are; there is no capture."""
    for fields, events in (
        (CHAT, chat_stream(captured=False)),
        (TEXT, [text_body(captured=False)]),
    ):
        seen, found = passed(fields, events)
        assert seen == b"".join(events)
        assert found is None


@pytest.mark.parametrize(
    "event",
    [
        b": keep-alive\n\n",
        b"data: [DONE]\n\n",
        b'data: {"error": {"message": "x", "logprobs": 1}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1}}\r\n\r\n',
        b"data: {broken\n\n",
        b'{"error": 1}',
        b"[]",
        b"",
    ],
)
def test_other_events_are_untouched(event: bytes) -> None:
    """Whatever is no choice passes byte for byte."""
    capture = VllmCapture(max_tokens=4096)
    capture.fields(CHAT)
    assert capture.pass_on(event) == event


def test_no_reply_breaks_it() -> None:
    """Choices of any form are passed on in some form, without an exception."""
    odd: list[Any] = [None, 1, "a", {}, {"logprobs": 1}, {"logprobs": {"content": 1}}]
    odd += [{"logprobs": {"content": [{}]}}, {"token_ids": 5}, {"logprobs": {"tokens": [1]}}]
    for one, other in itertools.product(odd, odd):
        reply = {"choices": [one, other]}
        seen, found = passed(CHAT, [b"data: " + json.dumps(reply).encode() + b"\n\n"])
        assert found is None
        assert len(json.loads(seen.removeprefix(b"data: "))["choices"]) == 2


@pytest.mark.parametrize("top", [1, 21])
def test_top_has_bounds(top: int) -> None:
    """One candidate would tell nothing, more than 20 are refused by vLLM's default."""
    with pytest.raises(ValueError, match=f"top is {top}: must be 2 to 20"):
        VllmCapture(top=top, max_tokens=4096)


def test_frames_differ_where_they_should() -> None:
    """The two forms of each frame are not the same to begin with."""
    for make in (vllm_frames.chat_body, vllm_frames.text_body):
        assert make(captured=True) != make(captured=False)
