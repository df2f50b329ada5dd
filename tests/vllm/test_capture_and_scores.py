"""Capture and scores on a real vLLM: nothing shows, and the numbers are the model's own."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import pytest
import torch

from compression.events import ignore
from compression.fidelity_support import score_told
from compression.prepare import Prepared
from compression.recipe import FULL
from gateway.engine.comparison import compare
from gateway.engine.runner import load_runner
from gateway.engine.tokenizer import load_backend
from gateway.errors import ContextLengthExceeded
from gateway.shadow.records import Captured
from gateway.shadow.vllm_capture import NOTHING, VllmCapture
from gateway.shadow.vllm_scorer import VllmScorer, read_prompt
from gateway.streaming import FrameSplitter
from gateway.upstream import EngineClient
from tests.vllm.conftest import MAX_TOKENS, TOP, Served

pytestmark = pytest.mark.vllm

_T = TypeVar("_T")

ATTEMPTS = 4
"""Asked twice for the same, vLLM on a busy machine once streamed other bytes."""
CHAT: tuple[str, dict[str, Any]] = (
    "/v1/chat/completions",
    {"messages": [{"role": "user", "content": 'What is "é" in 日本? \u2028'}], "max_tokens": 12},
)
TEXT: tuple[str, dict[str, Any]] = (
    "/v1/completions",
    {"prompt": "The quick brown fox", "max_tokens": 12},
)
CHANGED = {
    "temperature": 1.7, "top_p": 0.9, "seed": 5, "presence_penalty": 1.5, "min_tokens": 9,
    "logit_bias": {"70": 8},
}  # fmt: skip
_OWN = re.compile(rb'(?:chatcmpl|cmpl)-[0-9a-f]+|"created":\d+')


def with_client(served: Served, work: Callable[[EngineClient], Awaitable[_T]]) -> _T:
    """Return what ``work`` returns with a client of vLLM."""

    async def run() -> _T:
        client = EngineClient(served.reader.base_url, served_name="reader", read_timeout_s=60)
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


async def reply(
    client: EngineClient, path: str, fields: dict[str, Any], capture: VllmCapture | None
) -> bytes:
    """Return what a client sees, but for what differs between any two replies."""
    asked = fields if capture is None else capture.fields(fields)
    seen: list[bytes] = []
    async with client.generate(path, asked, "test") as answer:
        if fields.get("stream"):
            splitter = FrameSplitter()
            while chunk := await answer.read():
                seen += splitter.feed(chunk)
        else:
            seen.append(await answer.body())
    if capture is not None:
        seen = [capture.pass_on(event) for event in seen]
    return _OWN.sub(b"#", b"".join(seen))


@pytest.mark.parametrize("extra", [{"temperature": 0}, CHANGED], ids=["greedy", "changed"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields"), [CHAT, TEXT], ids=["chat", "text"])
def test_the_client_sees_nothing_of_it(
    served: Served, path: str, fields: dict[str, Any], stream: bool, extra: dict[str, Any]
) -> None:
    """Byte for byte the same reply, and the same numbers as a score of the same tokens."""
    fields = fields | extra | ({"stream": True} if stream else {})

    async def both(client: EngineClient) -> Captured | None:
        for _ in range(ATTEMPTS):
            plain = await reply(client, path, fields, None)
            capture = VllmCapture(top=20, max_tokens=4096)
            noted = await reply(client, path, fields, capture)
            if noted == plain:
                break
        assert noted == plain
        captured = await capture.result(client)
        assert captured is not None
        text = [*captured.prompt_token_ids, *(each.token_id for each in captured.positions)]
        candidates = [list(each.top) for each in captured.positions]
        start = len(captured.prompt_token_ids)
        scores = await VllmScorer(client, top=64).score(text, start, candidates)
        for position, scored in zip(captured.positions, scores, strict=True):
            likeliest = next(iter(position.top))
            # Other row counts round otherwise; two may be as likely as each other.
            assert scored.logprobs[likeliest] == pytest.approx(position.top[likeliest], abs=0.15)
            gap = scored.logprobs[likeliest] - max(scored.logprobs.values())
            assert likeliest == scored.top_token_id or gap > -0.15
            for token_id, logprob in scored.logprobs.items():
                assert logprob == pytest.approx(position.top[token_id], abs=0.15)
        return captured

    captured = with_client(served, both)
    assert captured is not None
    assert len(captured.positions) == 12 or extra is not CHANGED


def test_a_grammar_changes_the_numbers_and_is_seen(served: Served) -> None:
    """Why requests with one are left alone: what it forbids has no probability at all."""
    path, fields = CHAT
    asked = VllmCapture(top=5, max_tokens=4096).fields(fields | {"temperature": 0})

    async def ask(client: EngineClient) -> bytes:
        grammar = {"structured_outputs": {"regex": "[ab]{4}"}}
        return await reply(client, path, asked | grammar, None)

    body = with_client(served, ask)
    assert f'"logprob":{NOTHING}'.encode() in body
    capture = VllmCapture(top=5, max_tokens=4096)
    capture.fields(fields)
    capture.pass_on(body)
    assert with_client(served, capture.result) is None


def test_every_position_is_told_twice(served: Served) -> None:
    """What prefix caching knows of a text does not shorten the scores of it."""
    text = list(range(3, 203))

    async def twice(client: EngineClient) -> list[int]:
        lengths = []
        for _ in range(2):
            await client.complete({"prompt": text, "max_tokens": 1}, "warm")
            scores = await VllmScorer(client).score(text, 1, [[each] for each in text[1:]])
            assert all(each in row.logprobs for each, row in zip(text[1:], scores, strict=True))
            lengths.append(len(scores))
        return lengths

    assert with_client(served, twice) == [199, 199]


def test_scores_are_those_of_the_checkpoint(served: Served) -> None:
    """vLLM's numbers are near the embedded engine's on the same checkpoint."""
    runner = load_runner(served.directory, threads=2, max_model_len=None)
    text = [5, *range(40, 140)]
    told = served.reader.read(text)
    logits = runner.score(text)[:-1]
    scores = score_told(logits, told, text[1:])
    assert float(scores.kld.mean()) < 0.005
    assert float(scores.same_top.double().mean()) > 0.9
    torch.testing.assert_close(scores.nll, scores.nll_full, rtol=0, atol=0.3)


def test_a_comparison_tells_of_the_engine_alone(served: Served) -> None:
    """The full model on vLLM is as near to itself as bf16 logits let it be."""
    slices = {"fox": "The quick brown fox jumps over the lazy dog. " * 9}
    report = compare(
        "tiny",
        [FULL],
        slices,
        prepare=lambda model, recipe, revision, on_progress: Prepared(served.directory, None, True),
        load_runner=partial(load_runner, threads=2, max_model_len=None),
        load_tokenizer=load_backend,
        on_progress=ignore,
        max_tokens=100,
        serve=lambda directory, max_tokens: nullcontext(served.reader),
    )
    (recipe,) = report["recipes"]
    on_vllm = recipe["vllm"]
    assert on_vllm["version"] == served.reader.version
    assert (on_vllm["estimator"], on_vllm["top"]) == ("topk", TOP)
    assert on_vllm["embedded"]["all"]["kld_max"] == 0
    assert 0 < on_vllm["all"]["kld_mean"] < 0.005
    assert on_vllm["all"]["tokens"] == recipe["all"]["tokens"] == 99


def test_a_text_beyond_the_context_is_refused(served: Served) -> None:
    """vLLM's own refusal is told as what it is."""
    for length in (MAX_TOKENS + 1, MAX_TOKENS + 2, 4 * MAX_TOKENS):
        with pytest.raises(ContextLengthExceeded):
            with_client(served, lambda client: read_prompt(client, [5] * length, top=1))  # noqa: B023
