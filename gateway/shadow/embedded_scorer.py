"""A reference on the embedded engine: long texts in chunks of positions, one after another."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.errors import EngineFault
from gateway.score import MAX_CANDIDATES
from gateway.shadow.records import ScoredPosition
from gateway.upstream import EngineClient

CHUNK_POSITIONS = 1024
"""Positions of one call; the engine reads what comes before them again for each."""

_REQUEST_ID = "shadow"


class _Columns(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    logprobs: list[list[float | None]]
    argmax: list[int]


class _Scores(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    scores: _Columns


class EmbeddedScorer:
    """Scores texts by ``POST /engine/score``."""

    def __init__(self, client: EngineClient, *, chunk_positions: int = CHUNK_POSITIONS) -> None:
        self._client = client
        self._chunk_positions = chunk_positions

    async def score(
        self, token_ids: Sequence[int], start: int, candidates: Sequence[Sequence[int]]
    ) -> list[ScoredPosition]:
        """Return what the reference says of position ``start + i`` for ``candidates[i]``.

        Raises:
            ApiError: the reference refused, failed, is gone or told no numbers.
        """
        found: list[ScoredPosition] = []
        for first in range(0, len(candidates), self._chunk_positions):
            asked = [
                list(row)[:MAX_CANDIDATES] for row in candidates[first:][: self._chunk_positions]
            ]
            fields = {
                # The last token is predicted, and need not be read.
                "token_ids": list(token_ids[: start + first + len(asked) - 1]),
                "start": start + first,
                "candidates": asked,
            }
            found += _positions(await self._client.score(fields, _REQUEST_ID), asked)
        return found


def _positions(reply: Any, asked: Sequence[Sequence[int]]) -> list[ScoredPosition]:
    try:
        columns = _Scores.model_validate(reply).scores
        rows = list(zip(asked, columns.logprobs, columns.argmax, strict=True))
        return [
            ScoredPosition(dict(zip(ids, _numbers(logprobs), strict=True)), top)
            for ids, logprobs, top in rows
        ]
    except ValidationError:
        raise EngineFault("the reference's scores have a wrong form") from None
    except ValueError:
        raise EngineFault("the reference scored something else than was asked") from None


def _numbers(logprobs: Sequence[float | None]) -> list[float]:
    if any(logprob is None for logprob in logprobs):
        raise EngineFault("the reference's scores are no numbers")
    return [logprob for logprob in logprobs if logprob is not None]
