"""Teacher-forced scores of one text under this model, filled chunk by chunk."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from compression.fidelity import score_tokens
from gateway.engine.row_feed import RowFeed
from gateway.engine.scheduler import Work
from gateway.engine.sequence import Delta, SamplingParams, Sequence
from gateway.errors import ApiError
from gateway.score import ScoreRequest

LEAST_BELOW_PEAK = 100.0
"""What is further below a row's largest logit counts as so far, as in the gateway's own sums."""


@dataclass(slots=True)
class Scores:
    """Columns with an entry for each scored position; log-probabilities are natural."""

    logprobs: list[list[float]] = field(default_factory=list)
    """Of the position's candidates."""
    argmax: list[int] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    """KL(this model || the one that served) over the whole vocabulary, nats; where it was asked."""

    def extend(
        self, logits: torch.Tensor, candidates: list[list[int]], served: torch.Tensor | None = None
    ) -> None:
        """Score some positions: float32 ``logits [rows, vocab]`` and the candidates of each row.

        ``served`` has the logits of the model that served them, and may be changed.
        """
        normalizers = logits.logsumexp(1, keepdim=True)
        # Rows are padded with a candidate of their own, which changes nothing.
        widest = max(map(len, candidates))
        padded = torch.tensor([ids + ids[:1] * (widest - len(ids)) for ids in candidates])
        found = (logits.gather(1, padded) - normalizers).clamp_(max=0).tolist()
        self.logprobs += [row[: len(ids)] for row, ids in zip(found, candidates, strict=True)]
        self.argmax += logits.argmax(1).tolist()
        if served is not None:
            self.kl += divergences(logits, served)


def divergences(full: torch.Tensor, served: torch.Tensor) -> list[float]:
    """Return KL(full || served) of each row, nats; of float32 logits that it may change."""
    for rows in (full, served):
        torch.maximum(rows, rows.amax(1, keepdim=True) - LEAST_BELOW_PEAK, out=rows)
    # The offline comparison's own sums; they ask for a token that follows, which matters not.
    found: list[float] = score_tokens(full, served, [0] * len(full)).kld.tolist()
    return found


class Scoring:
    """One text on its way through the model; the step thread fills it, the event loop waits."""

    def __init__(self, request: ScoreRequest, feed: RowFeed | None = None) -> None:
        self._first = request.start
        self._candidates = request.candidates
        self._feed = feed
        self._scores = Scores()
        self._outcome: asyncio.Future[Scores | None] = asyncio.get_running_loop().create_future()
        self.wake: Callable[[], None] = _nothing
        """Has the step thread look again whether it can go on."""
        self.sequence = Sequence(
            # The token at the last position scored is predicted, and need not be read.
            request.token_ids[: request.start + len(request.candidates) - 1],
            SamplingParams(max_tokens=0),
            logits_from=request.start - 1,
            is_background=True,
            is_ready=None if feed is None else lambda: feed.is_ready,
        )

    def take(self, item: Work, logits: torch.Tensor) -> None:
        """Score what the last ``item.wanted`` positions of a chunk predict."""
        if item.wanted:
            first = item.start + len(item.token_ids) - item.wanted + 1 - self._first
            served = None if self._feed is None else self._feed.take(item.wanted)
            self._scores.extend(logits, self._candidates[first : first + item.wanted], served)

    def put(self, piece: Delta | ApiError) -> None:
        """Take over how it ended; runs on the event loop."""
        if self._outcome.done():
            return
        if isinstance(piece, Delta):
            self._outcome.set_result(self._scores)
        else:
            self._outcome.set_exception(piece)

    def cancel(self) -> None:
        """Stop at the next step; harmless at any time."""
        self.sequence.is_cancelled = True
        self.wake()
        if not self._outcome.done():
            self._outcome.set_result(None)

    async def result(self) -> Scores | None:
        """Wait for the scores; None if they were cancelled.

        Raises:
            ApiError: the step failed, or the rows to compare with are gone.
        """
        if self._feed is None:
            return await self._outcome
        fetching = asyncio.create_task(self._feed.run(self.wake))
        try:
            both: set[asyncio.Future[Any]] = {self._outcome, fetching}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not self._outcome.done():
                fetching.result()
            return await self._outcome
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)


def _nothing() -> None:
    """Wake nobody: it is not queued yet."""
