"""The capture of a reply by the embedded engine: asked for by a header, fetched afterwards."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.capture import Wish, headers_of
from gateway.errors import EngineFault
from gateway.score import RowsAt
from gateway.shadow.leisure import leisure
from gateway.shadow.records import Captured, Position
from gateway.shadow.releases import Releases
from gateway.upstream import EngineClient

_LONG_BYTES = 256 * 1024


class _Columns(BaseModel):
    """What the engine tells; null stands for a logarithm of 0."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float | None]
    top_token_ids: list[list[int]]
    top_logprobs: list[list[float | None]]
    num_rows: int | None = None
    """Whole distributions that the engine keeps; None: it does not."""


@dataclass(frozen=True, slots=True)
class WholeRows:
    """Asks for the whole distributions of answers up to so many tokens."""

    num_rows: int
    releases: Releases
    """Who has them forgotten."""


class EmbeddedCapture:
    """One reply of the embedded engine; request and reply stay as they are."""

    def __init__(self, num_top: int, whole: WholeRows | None = None) -> None:
        self._wish = Wish(uuid4().hex, num_top, 0 if whole is None else whole.num_rows)
        self._whole = whole

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request's own fields."""
        return dict(fields)

    def headers(self) -> Mapping[str, str]:
        """Return what asks the engine to take note."""
        return headers_of(self._wish)

    def pass_on(self, event: bytes) -> bytes:
        """Return the event as it is."""
        return event

    async def result(self, client: EngineClient) -> Captured | None:
        """Return what the engine noted; None if it keeps nothing of the kind.

        Raises:
            ApiError: the engine is gone, or tells something else than a capture.
        """
        raw = await client.take_capture(self._wish.capture_id)
        if raw is None:
            return None
        rows = self._rows(client)
        await leisure()
        if len(raw) <= _LONG_BYTES:
            return parse_capture(raw, rows)
        # Requests share this thread.
        return await asyncio.to_thread(parse_capture, raw, rows)

    def forget(self, client: EngineClient) -> None:
        """Have the engine let go of the distributions, where it may keep some."""
        if self._whole is not None:
            self._whole.releases.send(client, self._wish.capture_id)

    def _rows(self, client: EngineClient) -> RowsAt | None:
        port = httpx.URL(client.base_url).port
        if self._whole is None or port is None:
            return None
        return RowsAt(port=port, capture_id=self._wish.capture_id)


def parse_capture(raw: bytes, rows: RowsAt | None = None) -> Captured:
    """Return a capture from its form on the wire; ``rows`` is where whole ones may be.

    Raises:
        EngineFault: it is none.
    """
    try:
        columns = _Columns.model_validate_json(raw)
        positions = tuple(
            Position(token_id, _number(logprob), dict(zip(ids, map(_number, tops), strict=True)))
            for token_id, logprob, ids, tops in zip(
                columns.token_ids,
                columns.logprobs,
                columns.top_token_ids,
                columns.top_logprobs,
                strict=True,
            )
        )
    except ValueError as error:  # pydantic's errors are such, too
        kind = "a wrong form" if isinstance(error, ValidationError) else "columns of unequal length"
        raise EngineFault(f"the engine's capture has {kind}") from None
    is_whole = columns.num_rows == len(positions)
    return Captured(tuple(columns.prompt_token_ids), positions, rows if is_whole else None)


def _number(logprob: float | None) -> float:
    return -math.inf if logprob is None else logprob
