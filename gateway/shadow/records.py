"""What the shadow passes on: a captured reply, and what the reference says of its positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.score import RowsAt
from gateway.upstream import EngineClient


@dataclass(frozen=True, slots=True)
class Position:
    """One generated token, as the engine that served it saw it.

    Log-probabilities are natural, and the model's own: before temperature, penalties and cuts.
    """

    token_id: int
    logprob: float
    top: Mapping[int, float]
    """The engine's likeliest token ids, the likeliest first, with their log-probabilities."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A served reply in token ids and numbers; it never leaves memory."""

    prompt_token_ids: tuple[int, ...]
    positions: tuple[Position, ...]
    rows: RowsAt | None = None
    """Where its engine keeps the whole distributions, if it does."""


@dataclass(frozen=True, slots=True)
class ScoredPosition:
    """The same position under the reference, given the same tokens before it."""

    logprobs: Mapping[int, float]
    """Of those candidates that the reference could tell; natural."""
    top_token_id: int
    kl: float | None = None
    """KL(reference || engine) over the whole vocabulary, where it was asked for; in nats."""


class TooLong(Exception):
    """A reply, with its prompt, has more tokens than are held for a score."""

    def __init__(self, num_prompt_tokens: int) -> None:
        super().__init__("the reply has more tokens than are held")
        self.num_prompt_tokens = num_prompt_tokens


class Capture(Protocol):
    """Takes note of one reply on its way; the client sees the reply as if nobody looked."""

    def fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return what to ask the engine instead."""

    def headers(self) -> Mapping[str, str]:
        """Return what to send beside it."""

    def pass_on(self, event: bytes) -> bytes:
        """Return what the client may see of one SSE event, or of a whole plain body."""

    async def result(self, client: EngineClient) -> Captured | None:
        """Return what was captured; None if the engine did not tell it. Once, after the reply.

        Raises:
            ApiError: the engine refused, failed or is gone.
            TooLong: there was more than is held.
        """

    def forget(self, client: EngineClient) -> None:
        """Have the engine forget what it still keeps; neither waits nor fails."""


class Scorer(Protocol):
    """Reads tokens under a reference (teacher forcing)."""

    async def score(
        self, token_ids: Sequence[int], start: int, candidates: Sequence[Sequence[int]]
    ) -> list[ScoredPosition]:
        """Return what the reference says of position ``start + i`` for ``candidates[i]``.

        Raises:
            ApiError: the reference refused, failed or is gone.
        """
