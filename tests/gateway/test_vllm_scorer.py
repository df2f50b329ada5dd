"""Scores of given tokens from vLLM's prompt log-probabilities, over a server that replies as it."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import orjson
import pytest

from gateway.errors import ApiError, ContextLengthExceeded, EngineDown, EngineFault, InvalidRequest
from gateway.shadow import vllm_rows
from gateway.shadow.vllm_rows import read_rows
from gateway.shadow.vllm_scorer import VllmScorer, read_prompt
from gateway.upstream import EngineClient
from tests.gateway.test_upstream import Serve, server

_T = TypeVar("_T")

TEXT = [504, 3575, 282, 4649, 314]
TOLD: list[dict[str, dict[str, Any]] | None] = [
    None,
    {
        "3575": {"logprob": -11.580181121826172, "rank": 6003, "decoded_token": " capital"},
        "29": {"logprob": -1.7676808834075928, "rank": 1, "decoded_token": "-"},
        "28": {"logprob": -3.1426808834075928, "rank": 2, "decoded_token": ","},
    },
    {
        "282": {"logprob": -0.2622181475162506, "rank": 1, "decoded_token": " of"},
        "2240": {"logprob": -2.2622182369232178, "rank": 2, "decoded_token": " city"},
    },
    {
        "4649": {"logprob": -1.5101619958877563, "rank": 2, "decoded_token": " France"},
        "260": {"logprob": -1.5101619958877563, "rank": 1, "decoded_token": " the"},
    },
    {
        "314": {"logprob": -0.08995291590690613, "rank": 1, "decoded_token": " is"},
        "28": {"logprob": -3.8399529457092285, "rank": 2, "decoded_token": ","},
    },
]


class Asked:
    """What the server was asked, and how many of it at once."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.running = 0
        self.most = 0


def telling(asked: Asked, *, told: Any = None, status: int = 200) -> Serve:
    """Return a server that tells of as many tokens as it is sent, in vLLM's form."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(head.partition("content-length: ")[2].split("\r\n")[0])
            fields = json.loads(await reader.readexactly(length))
            asked.bodies.append(fields)
            asked.running += 1
            asked.most = max(asked.most, asked.running)
            await asyncio.sleep(0.01)
            part = TOLD[: len(fields["prompt"])] if told is None else told
            choice = {"index": 0, "text": " Paris", "logprobs": None, "prompt_logprobs": part}
            body = json.dumps({"choices": [choice]}).encode()
            writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(body)))
            writer.write(body)
            asked.running -= 1

    return serve


def against(serve: Serve, work: Callable[[EngineClient], Awaitable[_T]]) -> _T:
    """Return what ``work`` returns with a client of such a server."""

    async def run() -> _T:
        async with server(serve) as url:
            client = EngineClient(url, served_name="x", read_timeout_s=5)
            try:
                return await work(client)
            finally:
                await client.aclose()

    return asyncio.run(run())


def test_positions_are_scored_for_their_candidates() -> None:
    """Each position has its own candidates; those that vLLM did not tell of are absent."""
    asked = Asked()
    found = against(
        telling(asked),
        lambda client: VllmScorer(client, top=2).score(TEXT, 1, [[28, 29, 7], [282], [260, 4649]]),
    )
    assert [dict(each.logprobs) for each in found] == [
        {28: -3.1426808834075928, 29: -1.7676808834075928},
        {282: -0.2622181475162506},
        {260: -1.5101619958877563, 4649: -1.5101619958877563},
    ]
    assert [each.top_token_id for each in found] == [29, 282, 260]


def test_no_more_is_read_than_is_scored() -> None:
    """The text is cut behind the last position, and one token is written because one must be."""
    asked = Asked()
    against(telling(asked), lambda client: VllmScorer(client, top=2).score(TEXT, 2, [[1], [1]]))
    assert asked.bodies == [
        {
            "model": "x",
            "prompt": TEXT[:4],
            "prompt_logprobs": 2,
            "max_tokens": 1,
            "temperature": 0,
            "add_special_tokens": False,
        }
    ]


def test_texts_take_turns() -> None:
    """However many are scored together, vLLM is asked for one at a time."""
    asked = Asked()

    async def many(client: EngineClient) -> None:
        scorer = VllmScorer(client)
        await asyncio.gather(*(scorer.score(TEXT, 1, [[1]]) for _ in range(5)))

    against(telling(asked), many)
    assert (len(asked.bodies), asked.most) == (5, 1)


@pytest.mark.parametrize(
    ("start", "count", "kind", "message"),
    [
        (0, 1, InvalidRequest, "positions 0 to 0 of a text of 5 tokens cannot be scored"),
        (4, 2, InvalidRequest, "positions 4 to 5 of a text of 5 tokens .* send some of 1 to 4"),
        (3, 0, InvalidRequest, "cannot be scored"),
        (1, 4, ContextLengthExceeded, "5 tokens are to be read, and at most 4 are scored"),
    ],
)
def test_what_cannot_be_scored_is_not_sent(
    start: int, count: int, kind: type[ApiError], message: str
) -> None:
    """A wrong place or a text beyond the cap costs vLLM nothing."""
    asked = Asked()
    with pytest.raises(kind, match=message):
        against(
            telling(asked),
            lambda client: VllmScorer(client, max_tokens=4).score(TEXT, start, [[1]] * count),
        )
    assert asked.bodies == []


@pytest.mark.parametrize(
    "told",
    [
        [],
        "no",
        {"a": 1},
        TOLD[:4],
        [*TOLD, TOLD[1]],
        [None, *TOLD[2:], TOLD[1]],
        [None, *TOLD[:4]],
        [None, {}, {}, {}, {}],
        [None, *({"1": {"logprob": "x", "rank": 1}} for _ in range(4))],
        [None, *({"one": {"logprob": 0, "rank": 1}} for _ in range(4))],
        [None, *({"1": {"logprob": 0}} for _ in range(4))],
    ],
)
def test_other_replies_are_the_engines_fault(told: Any) -> None:
    """A server that is no vLLM, or of another model's text, is named as such."""
    with pytest.raises(EngineFault, match=r"told no 'prompt_logprobs' of 5 tokens: a reference"):
        against(telling(Asked(), told=told), lambda client: read_prompt(client, TEXT, top=2))


def test_a_reference_that_fails_is_an_error_and_gives_its_turn_back() -> None:
    """After a failure the next text is scored."""

    async def twice(client: EngineClient) -> None:
        scorer = VllmScorer(client)
        for _ in range(2):
            with pytest.raises(EngineFault, match="status 500"):
                await scorer.score(TEXT, 1, [[1]])

    asked = Asked()
    against(telling(asked, status=500), twice)
    assert len(asked.bodies) == 2


def test_a_reference_that_is_gone_is_an_error() -> None:
    """Nobody listens any more."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    with pytest.raises((EngineDown, EngineFault)):
        against(hang_up, lambda client: VllmScorer(client).score(TEXT, 1, [[1]]))


@pytest.mark.parametrize("text", ["}},{", '}},{"4":{"logprob":0', "}}]", '\\"}},{\\"4":', "é"])
def test_the_text_of_a_token_is_no_border_between_rows(text: str) -> None:
    """What looks like the form of the reply stands in a token's text without harm."""
    row = {"7": {"logprob": -1.0, "rank": 1, "decoded_token": text}}
    for separators in ((",", ":"), (", ", ": ")):
        choice = {"text": text, "prompt_logprobs": [None, row, row, row], "index": 0}
        raw = json.dumps({"id": text, "choices": [choice]}, separators=separators).encode()
        assert [each.top_token_id for each in read_rows(raw, [7] * 4, 1)] == [7, 7, 7]


def test_only_rows_that_are_asked_for_are_parsed_and_not_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind a long prompt the answer alone is read, by another thread, row by row."""
    parsed: list[int] = []
    threads: set[threading.Thread] = set()
    loads = orjson.loads

    def watched(raw: bytes) -> Any:
        parsed.append(len(raw))
        threads.add(threading.current_thread())
        return loads(raw)

    row = {str(each): {"logprob": -float(each), "rank": each} for each in range(1, 21)}
    told = [None, *(row for _ in range(499))]
    monkeypatch.setattr(vllm_rows, "orjson", SimpleNamespace(loads=watched))
    scored = against(
        telling(Asked(), told=told),
        lambda client: VllmScorer(client).score([1] * 500, 490, [[2, 99]] * 10),
    )
    assert [each.logprobs for each in scored] == [{2: -2.0}] * 10
    assert len(parsed) == 9  # the last one ends where the reply goes on
    assert max(parsed) < 1000
    assert threading.main_thread() not in threads
