"""The text of a reply, and what can be seen of it alone."""

import json
from typing import Any

import pytest

from gateway.shadow import answer
from gateway.shadow.answer import Answer, ReplyBytes, ToolCall
from gateway.shadow.output_checks import check

CALL = {"name": "find", "arguments": '{"city": "Bonn"}'}
TOOLS = {"tools": [{"type": "function", "function": {"name": "find"}}]}


def read(*parts: bytes) -> Answer | None:
    """Return the answer of a reply that came in these parts."""
    reply = ReplyBytes()
    for part in parts:
        reply.take(part)
    return reply.read()


def event(fields: dict[str, Any]) -> bytes:
    """Return one event of a stream."""
    return b"data: " + json.dumps({"choices": [fields]}).encode() + b"\n\n"


def test_plain_and_streamed_replies_read_the_same() -> None:
    """Text, calls and the reason of the end, from a chat or a completion."""
    message = {"content": "Hi there", "tool_calls": [{"function": CALL}]}
    choice = {"message": message, "finish_reason": "tool_calls"}
    plain = read(json.dumps({"choices": [choice]}).encode())
    head, tail = CALL["arguments"][:5], CALL["arguments"][5:]
    streamed = read(
        event({"delta": {"role": "assistant", "content": "Hi "}, "finish_reason": None}),
        event({"delta": {"content": "there"}}),
        event({"delta": {"tool_calls": [{"index": 0, "function": {"name": "find"}}]}}),
        event({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": head}}]}}),
        event({"delta": {"tool_calls": [{"index": 0, "function": {"arguments": tail}}]}}),
        event({"delta": {}, "finish_reason": "tool_calls"}),
        b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n',
        b": keep-alive\n\ndata: [DONE]\n\n",
    )
    assert plain == streamed
    assert plain == Answer("Hi there", (ToolCall("find", CALL["arguments"]),), "tool_calls")
    text = read(event({"text": "one"}), event({"text": " two", "finish_reason": "stop"}))
    assert text == Answer("one two", (), "stop")


def test_what_cannot_be_read_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, rubbish, and more than is kept."""
    monkeypatch.setattr(answer, "MAX_BYTES", 100)
    for parts in ((), (b"{",), (b"data: {\n\n",), (b'{"choices": [3]}',), (b"x" * 60,) * 2):
        assert read(*parts) is None


BROKEN = [
    ("", "empty"),
    (" \n", "empty"),
    ("The answer is" + " the same" * 12, "repetition"),
    ("a" * 60, "repetition"),
    ("Paris. " * 9, "repetition"),
    ("Yes" + "!" * 20 + " and more", "runs"),
    ("caf\ufffd", "encoding"),
    ("a\x00b", "encoding"),
]
SOUND = [
    "Paris is the capital of France.",
    "No no no no no no.",
    "# Title\n" + "-" * 40 + "\n| a | b |\n",
    "Wow!!! Really?!",
    "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13",
    "日本語の文章です。",
]


@pytest.mark.parametrize(("text", "name"), BROKEN)
def test_signs_of_a_broken_model(text: str, name: str) -> None:
    """Each is seen by its own check."""
    results = check(Answer(text, (), "stop"), {})
    assert not results[name]


@pytest.mark.parametrize("text", SOUND)
def test_sound_answers_stand_all_checks(text: str) -> None:
    """Lists, tables and exclamations are nothing strange."""
    results = check(Answer(text, (), "stop"), {})
    assert all(results.values())
    assert results.keys() == {"empty", "repetition", "runs", "encoding"}


@pytest.mark.parametrize(
    ("found", "fields", "expected"),
    [
        (Answer("{}", (), "stop"), {"response_format": {"type": "json_object"}}, {"json": True}),
        (Answer("{", (), "stop"), {"response_format": {"type": "json_schema"}}, {"json": False}),
        (Answer("{", (), "length"), {"response_format": {"type": "json_object"}}, {}),
        (Answer("{", (), "stop"), {"response_format": {"type": "text"}}, {}),
        (Answer("", (ToolCall("find", "{}"),), "tool_calls"), TOOLS, {"tool_call": True}),
        (Answer("", (ToolCall("find", "[]"),), "tool_calls"), TOOLS, {"tool_call": False}),
        (Answer("", (ToolCall("lose", "{}"),), "tool_calls"), TOOLS, {"tool_call": False}),
        (Answer("", (ToolCall("find", "{"),), "length"), TOOLS, {}),
    ],
)
def test_forms_that_were_asked_for(
    found: Answer, fields: dict[str, Any], expected: dict[str, bool]
) -> None:
    """JSON and calls are checked where they were asked for and the answer is whole."""
    results = check(found, fields)
    assert {name: results[name] for name in results if name in {"json", "tool_call"}} == expected
