"""Teacher-forced scores of one text under this model, filled chunk by chunk."""

import asyncio
from dataclasses import dataclass, field

import torch

from gateway.engine.scheduler import Work
from gateway.engine.sequence import Delta, SamplingParams, Sequence
from gateway.errors import ApiError
from gateway.score import ScoreRequest


@dataclass(slots=True)
class Scores:
    """Columns with an entry for each scored position; log-probabilities are natural."""

    logprobs: list[list[float]] = field(default_factory=list)
    """Of the position's candidates."""
    argmax: list[int] = field(default_factory=list)
    argmax_logprobs: list[float] = field(default_factory=list)
    remainders: list[float | None] = field(default_factory=list)
    """Of everything that is no candidate, together; None where nothing is left."""

    def extend(self, logits: torch.Tensor, candidates: list[list[int]]) -> None:
        """Score some positions: float32 ``logits [rows, vocab]`` and the candidates of each row."""
        normalizers = logits.logsumexp(1, keepdim=True)
        # Rows are padded with a candidate of their own, which changes nothing.
        widest = max(map(len, candidates))
        padded = torch.tensor([ids + ids[:1] * (widest - len(ids)) for ids in candidates])
        found = (logits.gather(1, padded) - normalizers).clamp_(max=0).tolist()
        self.logprobs += [row[: len(ids)] for row, ids in zip(found, candidates, strict=True)]
        peaks, places = logits.max(dim=1)
        self.argmax += places.tolist()
        self.argmax_logprobs += (peaks - normalizers[:, 0]).clamp_(max=0).tolist()
        rest = logits.scatter(1, padded, float("-inf")).logsumexp(1) - normalizers[:, 0]
        self.remainders += [
            value if value > float("-inf") else None for value in rest.clamp_(max=0).tolist()
        ]


class Scoring:
    """One text on its way through the model; the step thread fills it, the event loop waits."""

    def __init__(self, request: ScoreRequest) -> None:
        self._first = request.start
        self._candidates = request.candidates
        self._scores = Scores()
        self._outcome: asyncio.Future[Scores | None] = asyncio.get_running_loop().create_future()
        self.sequence = Sequence(
            # The token at the last position scored is predicted, and need not be read.
            request.token_ids[: request.start + len(request.candidates) - 1],
            SamplingParams(max_tokens=0),
            logits_from=request.start - 1,
            is_background=True,
        )

    def take(self, item: Work, logits: torch.Tensor) -> None:
        """Score what the last ``item.wanted`` positions of a chunk predict."""
        if item.wanted:
            first = item.start + len(item.token_ids) - item.wanted + 1 - self._first
            self._scores.extend(logits, self._candidates[first : first + item.wanted])

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
        if not self._outcome.done():
            self._outcome.set_result(None)

    async def result(self) -> Scores | None:
        """Wait for the scores; None if they were cancelled.

        Raises:
            ApiError: the step failed.
        """
        return await self._outcome
