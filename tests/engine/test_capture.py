"""Tests of the capture: what an engine notes of an answer while it decodes it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest
import torch

from gateway.capture import HEADER, ID_HEADER, Wish, headers_of
from gateway.engine import captures
from gateway.engine.captures import Captures
from gateway.engine.runner import load_runner
from gateway.engine.tokenizer import load_tokenizer
from tests.engine.fakes import RunningEngine, body, running_engine

CHAT = "/v1/chat/completions"
TOP, TOP_IDS = np.array([-1, -2], np.float32), np.array([5, 6], np.int32)


@pytest.fixture(scope="module")
def real(tiny_llama_dir: Path) -> Iterator[RunningEngine]:
    """Serve a tiny model with random weights."""
    runner = load_runner(tiny_llama_dir, threads=1, max_model_len=None)
    with running_engine(runner, load_tokenizer(tiny_llama_dir)) as engine:
        yield engine


def ask(engine: RunningEngine, wish: Wish | None, **fields: Any) -> httpx.Response:
    """Send a chat request with the headers of a wish."""
    headers = {} if wish is None else headers_of(wish)
    return httpx.post(f"{engine.url}{CHAT}", json=body(**fields), headers=headers, timeout=30)


def captured(engine: RunningEngine, wish: Wish) -> dict[str, Any]:
    """Return what the engine noted."""
    reply = httpx.get(f"{engine.url}/engine/capture/{wish.capture_id}")
    found: dict[str, Any] = reply.raise_for_status().json()
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {
            "temperature": 1.7,
            "seed": 3,
            "top_p": 0.9,
            "presence_penalty": 1.5,
            "logit_bias": {"17": 20},
        },
        {"temperature": 0, "stream": True},
        {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    ],
)
def test_a_capture_is_the_models_own_distribution(
    real: RunningEngine, fields: dict[str, Any]
) -> None:
    """Raw log-probabilities of all generated tokens, whatever sampling did with them."""
    wish = Wish(uuid4().hex, 8)
    plain = ask(real, None, max_tokens=20, return_token_ids=True, **fields | {"stream": False})
    ask(real, wish, max_tokens=20, **fields).raise_for_status()
    found = captured(real, wish)
    assert found["prompt_token_ids"] == plain.json()["prompt_token_ids"]
    assert found["token_ids"] == plain.json()["choices"][0]["token_ids"]

    ids = found["prompt_token_ids"] + found["token_ids"]
    cache = real.runner.new_cache(len(ids))
    steps = [real.runner.forward([(cache, ids[: len(found["prompt_token_ids"])], 1)])]
    steps += [real.runner.forward([(cache, [token], 1)]) for token in found["token_ids"][:-1]]
    expected = torch.cat(steps).log_softmax(1)
    rows = torch.arange(len(found["token_ids"]))
    chosen = expected[rows, torch.tensor(found["token_ids"])].tolist()
    assert found["logprobs"] == pytest.approx(chosen, abs=0.1)
    for row, top_ids, top in zip(
        expected, found["top_token_ids"], found["top_logprobs"], strict=True
    ):
        assert len(top_ids) == len(set(top_ids)) == 8
        assert top == sorted(top, reverse=True)
        assert top == pytest.approx(row[top_ids].tolist(), abs=0.1)


def test_replies_are_the_same_with_and_without(real: RunningEngine) -> None:
    """The client sees nothing of a capture."""
    fields = {"max_tokens": 6, "logprobs": True, "top_logprobs": 1}
    with_it = ask(real, Wish(uuid4().hex, 8), **fields).json()
    without = ask(real, None, **fields).json()
    assert with_it["choices"] == without["choices"]
    assert with_it["usage"] == without["usage"]


def test_a_capture_is_told_once(real: RunningEngine) -> None:
    """The second time it is gone, and so is one that never was."""
    wish = Wish(uuid4().hex, 2)
    ask(real, wish, max_tokens=2)
    captured(real, wish)
    for capture_id in (wish.capture_id, "nothing"):
        assert httpx.get(f"{real.url}/engine/capture/{capture_id}").status_code == 404


def test_several_answers_are_not_captured(real: RunningEngine) -> None:
    """A request for more than one answer is served as ever."""
    wish = Wish(uuid4().hex, 2)
    assert len(ask(real, wish, max_tokens=2, n=2).json()["choices"]) == 2
    assert httpx.get(f"{real.url}/engine/capture/{wish.capture_id}").status_code == 404


@pytest.mark.parametrize(
    ("headers", "param", "words"),
    [
        ({HEADER: "0", ID_HEADER: "a" * 32}, HEADER, "a number from 1 to 64"),
        ({HEADER: "65", ID_HEADER: "a" * 32}, HEADER, "is '65'"),
        ({HEADER: "x", ID_HEADER: "a" * 32}, HEADER, "is 'x'"),
        ({HEADER: "9" * 5000, ID_HEADER: "a" * 32}, HEADER, "a number from 1 to 64"),
        ({HEADER: "5", ID_HEADER: "a/b"}, ID_HEADER, "32 hexadecimal digits"),
        ({HEADER: "5"}, ID_HEADER, "32 hexadecimal digits"),
    ],
)
def test_bad_headers(real: RunningEngine, headers: dict[str, str], param: str, words: str) -> None:
    """One error that names the header, its value and the remedy."""
    refused = httpx.post(f"{real.url}{CHAT}", json=body(), headers=headers, timeout=30)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert words in refused.json()["error"]["message"]


def test_the_store_is_bounded() -> None:
    """Too many, too large or too old: the oldest go, and what still decodes is noted no longer."""
    now = [0.0]
    store = Captures(clock=lambda: now[0])
    first = store.open(Wish("0", 2), [1, 2], max_tokens=3)
    for number in range(1, captures.MAX_KEPT + 1):
        store.open(Wish(str(number), 2), [1], max_tokens=3)
    assert store.pop("0") is None
    first.take(5, -1.0, TOP, TOP_IDS)
    assert first.columns()["token_ids"] == []

    huge = captures.MAX_BYTES // 24
    store.open(Wish("a", 2), [1], max_tokens=huge // 2)
    store.open(Wish("b", 2), [1], max_tokens=huge // 2 + 1)
    assert store.pop("a") is None
    assert store.num_bytes <= captures.MAX_BYTES

    last = store.open(Wish("c", 2), [1], max_tokens=3)
    last.take(5, -1.0, TOP, TOP_IDS)
    now[0] += captures.MAX_AGE_S + 1
    assert store.pop("c") is None


def test_recordings_grow_old_on_a_quiet_engine_too() -> None:
    """Nobody comes or asks any more: all are forgotten, also one without a first token."""
    now = [0.0]
    store = Captures(clock=lambda: now[0])
    begun = store.open(Wish("begun", 2), [1, 2], max_tokens=3)
    begun.take(5, -1.0, TOP, TOP_IDS)
    unbegun = store.open(Wish("unbegun", 2), [1, 2], max_tokens=3)

    async def wait() -> None:
        tending = asyncio.create_task(store.tend(0.001))
        for after_s, old in ((captures.MAX_AGE_S, begun), (captures.MAX_WAIT_S, unbegun)):
            now[0] = after_s
            await asyncio.sleep(0.01)
            assert not old.is_dropped
            now[0] += 1
            async with asyncio.timeout(30):
                while not old.is_dropped:  # noqa: ASYNC110 (a test looks from outside)
                    await asyncio.sleep(0.001)
        tending.cancel()

    asyncio.run(wait())
    assert store.num_bytes == 0
