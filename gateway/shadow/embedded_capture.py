"""The capture of a reply by the embedded engine: asked for by a header, fetched afterwards."""

import asyncio
import math
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.capture import Wish, headers_of
from gateway.errors import EngineFault
from gateway.shadow.records import Captured, Position
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


class EmbeddedCapture:
    """One reply of the embedded engine; request and reply stay as they are."""

    def __init__(self, num_top: int) -> None:
        self._wish = Wish(uuid4().hex, num_top)

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
        if raw is None or len(raw) <= _LONG_BYTES:
            return None if raw is None else parse_capture(raw)
        # Requests share this thread.
        return await asyncio.to_thread(parse_capture, raw)


def parse_capture(raw: bytes) -> Captured:
    """Return a capture from its form on the wire.

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
    return Captured(tuple(columns.prompt_token_ids), positions)


def _number(logprob: float | None) -> float:
    return -math.inf if logprob is None else logprob
