"""What the gateway reads of an engine's capture and of a reference's scores."""

import asyncio
import math
from typing import Any

import orjson
import pytest

from gateway.errors import EngineFault
from gateway.shadow.embedded_capture import EmbeddedCapture, parse_capture
from gateway.shadow.embedded_scorer import EmbeddedScorer
from gateway.shadow.records import Position, ScoredPosition
from gateway.upstream import EngineClient

COLUMNS: dict[str, Any] = {
    "prompt_token_ids": [7, 8],
    "token_ids": [1, 2],
    "logprobs": [-0.5, None],
    "top_token_ids": [[1, 3], [3, 2]],
    "top_logprobs": [[-0.5, -1.0], [-0.1, None]],
}


def test_columns_become_positions() -> None:
    """Null is the logarithm of 0, which JSON cannot say; the likeliest token stays the first."""
    found = parse_capture(orjson.dumps(COLUMNS))
    assert found.prompt_token_ids == (7, 8)
    assert found.positions == (
        Position(1, -0.5, {1: -0.5, 3: -1.0}),
        Position(2, -math.inf, {3: -0.1, 2: -math.inf}),
    )
    assert list(found.positions[1].top) == [3, 2]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        orjson.dumps(COLUMNS | {"logprobs": ["x", None]}),
        orjson.dumps(COLUMNS | {"logprobs": [-0.5]}),
        orjson.dumps(COLUMNS | {"top_logprobs": [[-0.5], [-0.1, None]]}),
    ],
)
def test_other_forms_are_the_engines_fault(raw: bytes) -> None:
    """Each is one error, and never a wrong number."""
    with pytest.raises(EngineFault, match="capture has"):
        parse_capture(raw)


def test_the_request_stays_as_it_is() -> None:
    """Nothing but headers is added, and each capture has an id of its own."""
    one, other = EmbeddedCapture(5), EmbeddedCapture(5)
    assert one.fields({"messages": [1]}) == {"messages": [1]}
    assert one.pass_on(b"data: x\n\n") == b"data: x\n\n"
    assert one.headers()["x-narrowgate-capture"] == "5"
    ids = {each.headers()["x-narrowgate-capture-id"] for each in (one, other)}
    assert len(ids) == 2


class Reference(EngineClient):
    """Answers from a list and notes what it was asked."""

    def __init__(self, replies: list[Any]) -> None:
        super().__init__("http://127.0.0.1:1", served_name="x", read_timeout_s=1)
        self.replies = replies
        self.asked: list[Any] = []

    async def score(self, fields: Any, request_id: str) -> Any:
        """Return the next reply."""
        self.asked.append(fields)
        return self.replies.pop(0)


def scores(*rows: list[float | None]) -> dict[str, Any]:
    """Return a reply."""
    return {"scores": {"logprobs": list(rows), "argmax": [9] * len(rows)}}


def test_long_texts_are_scored_in_chunks() -> None:
    """Each chunk holds what its positions need and no token more; together they are all."""
    client = Reference([scores([-1.0, -2.0], [-3.0]), scores([-4.0])])
    scorer = EmbeddedScorer(client, chunk_positions=2)
    found = asyncio.run(scorer.score([1, 2, 3, 4, 5], 2, [[3, 8], [4], [5]]))
    assert found == [
        ScoredPosition({3: -1.0, 8: -2.0}, 9),
        ScoredPosition({4: -3.0}, 9),
        ScoredPosition({5: -4.0}, 9),
    ]
    assert client.asked == [
        {"token_ids": [1, 2, 3], "start": 2, "candidates": [[3, 8], [4]]},
        {"token_ids": [1, 2, 3, 4], "start": 4, "candidates": [[5]]},
    ]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({}, "wrong form"),
        ({"scores": {"logprobs": [["x"]], "argmax": [1]}}, "wrong form"),
        (scores([None]), "no numbers"),
        (scores([-1.0, -2.0]), "something else"),
        (scores(), "something else"),
    ],
)
def test_other_scores_are_the_references_fault(reply: Any, words: str) -> None:
    """Each is one error."""
    with pytest.raises(EngineFault, match=words):
        asyncio.run(EmbeddedScorer(Reference([reply])).score([1, 2], 1, [[2]]))
