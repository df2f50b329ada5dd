"""A reference on the embedded engine: long texts in chunks of positions, one after another."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.errors import EngineFault, EngineRefused
from gateway.score import MAX_CANDIDATES, ROWS_GONE, RowsAt
from gateway.shadow.leisure import leisure
from gateway.shadow.records import ScoredPosition
from gateway.upstream import EngineClient

CHUNK_POSITIONS = 1024
"""Positions of one call; the engine reads what comes before them again for each."""

_REQUEST_ID = "shadow"


class _Columns(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    logprobs: list[list[float | None]]
    argmax: list[int]
    kl: list[float | None] = []


class _Scores(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    scores: _Columns


class RowsLost(Exception):
    """The distributions to compare with are not kept any more."""


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
        return await self._score(token_ids, start, candidates, None)

    async def score_exactly(
        self,
        token_ids: Sequence[int],
        start: int,
        candidates: Sequence[Sequence[int]],
        rows: RowsAt,
    ) -> list[ScoredPosition]:
        """Return the same, each with its divergence from the distributions that are kept there.

        The reference fetches them itself.

        Raises:
            RowsLost: they are not kept any more.
            ApiError: the reference refused, failed, is gone or told no numbers.
        """
        try:
            return await self._score(token_ids, start, candidates, rows)
        except EngineRefused as error:
            if error.code == ROWS_GONE:
                raise RowsLost(str(error)) from None
            raise

    async def _score(
        self,
        token_ids: Sequence[int],
        start: int,
        candidates: Sequence[Sequence[int]],
        rows: RowsAt | None,
    ) -> list[ScoredPosition]:
        found: list[ScoredPosition] = []
        for first in range(0, len(candidates), self._chunk_positions):
            asked = [
                list(row)[:MAX_CANDIDATES] for row in candidates[first:][: self._chunk_positions]
            ]
            fields: dict[str, Any] = {
                # The last token is predicted, and need not be read.
                "token_ids": list(token_ids[: start + first + len(asked) - 1]),
                "start": start + first,
                "candidates": asked,
            }
            if rows is not None:
                fields["rows"] = {**rows.model_dump(), "first": rows.first + first}
            reply = await self._client.score(fields, _REQUEST_ID)
            await leisure()
            found += _positions(reply, asked, is_exact=rows is not None)
        return found


def _positions(
    reply: Any, asked: Sequence[Sequence[int]], *, is_exact: bool
) -> list[ScoredPosition]:
    try:
        columns = _Scores.model_validate(reply).scores
        exact = _numbers(columns.kl) if is_exact else [None] * len(asked)
        rows = list(zip(asked, columns.logprobs, columns.argmax, exact, strict=True))
        return [
            ScoredPosition(dict(zip(ids, _numbers(logprobs), strict=True)), top, kl)
            for ids, logprobs, top, kl in rows
        ]
    except ValidationError:
        raise EngineFault("the reference's scores have a wrong form") from None
    except ValueError:
        raise EngineFault("the reference scored something else than was asked") from None


def _numbers(logprobs: Sequence[float | None]) -> list[float]:
    if any(logprob is None for logprob in logprobs):
        raise EngineFault("the reference's scores are no numbers")
    return [logprob for logprob in logprobs if logprob is not None]
