"""Tests of ``/tokenize`` and ``/detokenize`` of the embedded engine."""

from typing import Any

import httpx
import pytest

from tests.engine.fakes import MESSAGES, MODEL, RunningEngine, body, post


def ask(engine: RunningEngine, path: str, **fields: Any) -> httpx.Response:
    """Post to one of the routes."""
    return httpx.post(f"{engine.url}/{path}", json={"model": MODEL} | fields, timeout=30)


def test_messages_give_the_ids_that_generation_reads(engine: RunningEngine) -> None:
    """The ids of a conversation are those of the prompt that an answer is made from."""
    found = ask(engine, "tokenize", messages=MESSAGES).json()
    usage = post(engine, body()).json()["usage"]
    assert found["tokens"] == engine.runner.batches[0][0]
    assert found["count"] == len(found["tokens"]) == usage["prompt_tokens"]
    assert (found["max_model_len"], found["token_strs"]) == (256, None)


def test_without_the_generation_prompt(engine: RunningEngine) -> None:
    """The turn of the assistant is opened only if asked for."""
    whole = ask(engine, "tokenize", messages=MESSAGES).json()["tokens"]
    cut = ask(engine, "tokenize", messages=MESSAGES, add_generation_prompt=False).json()["tokens"]
    assert whole[: len(cut)] == cut
    assert engine.tokenizer.decode(whole[len(cut) :]) == "<|im_start|>assistant\n"


@pytest.mark.parametrize("text", ["", "quick", "über 日本 🦊", "a<|im_end|>b", "\x00\n "])
def test_there_and_back(engine: RunningEngine, text: str) -> None:
    """A text survives, special tokens included, and its pieces are as many as its ids."""
    found = ask(engine, "tokenize", prompt=text, return_token_strs=True).json()
    assert len(found["token_strs"]) == found["count"]
    assert ask(engine, "detokenize", tokens=found["tokens"]).json() == {"prompt": text}


def test_a_text_longer_than_the_context_is_counted(engine: RunningEngine) -> None:
    """Counting is what the route is for, so nothing is too long."""
    assert ask(engine, "tokenize", prompt="quick " * 400).json()["count"] > 256


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": 5}, "prompt"),
        ("tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("tokenize", {"messages": [{"role": "king", "content": ""}]}, "messages.0.role"),
        (
            "tokenize",
            {"messages": MESSAGES, "tools": [{"type": "function", "function": {"name": "f"}}]},
            "tools",
        ),
        ("detokenize", {"tokens": [320]}, "tokens"),
        ("detokenize", {"tokens": [2**31]}, "tokens.0"),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": [1], "model": "other"}, "model"),
    ],
)
def test_bad_bodies(engine: RunningEngine, path: str, fields: dict[str, Any], param: str) -> None:
    """A wrong field is refused by name."""
    reply = ask(engine, path, **fields)
    assert reply.status_code == (404 if param == "model" else 400)
    assert reply.json()["error"]["param"] == param
