"""Scores what was captured for one reference, one reply after another, while there is room."""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from gateway.errors import (
    ApiError,
    ContextLengthExceeded,
    EngineRefused,
    NarrowgateError,
)
from gateway.registry import Metrics
from gateway.shadow.candidate import Candidate
from gateway.shadow.divergence import (
    Divergence,
    NotANumber,
    compare,
    noise_floor,
)
from gateway.shadow.embedded_scorer import RowsLost
from gateway.shadow.exact import reading
from gateway.shadow.free_runner import FreeRunner
from gateway.shadow.leisure import leisure
from gateway.shadow.queue import ShadowQueue
from gateway.shadow.records import Captured, ScoredPosition, Scorer
from gateway.shadow.reference import Reference
from gateway.shadow.sampling import Spent
from gateway.shadow.scored import ScoredRequest, Sink
from gateway.shadow.teacher_forcing import piecewise, text_of
from gateway.shadow.yielding import Yielded, Yielding
from gateway.shadow_settings import ShadowSettings

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

FULL = "full"

_MAX_ATTEMPTS = 3
"""A score that was broken off is begun anew; on a busy machine it would never end."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A captured reply that waits for its score."""

    candidate: Candidate
    captured: Captured
    variant: str
    slices: Mapping[str, range]
    spent: Spent | None = None
    """What it was admitted for."""
    num_broken_off: int = 0

    @property
    def num_tokens(self) -> int:
        """Return what the reference has to read."""
        return len(self.captured.prompt_token_ids) + len(self.captured.positions)

    @property
    def unread(self) -> Spent | None:
        """Return what it was admitted for, unless the reference has begun to read it."""
        return None if self.num_broken_off else self.spent

    def give_up(self, reason: Literal["stopped", "error"]) -> None:
        """End whatever of it has not ended: the score, or the free run behind it."""
        self.candidate.drop(reason)
        if self.candidate.free_run is not None:
            self.candidate.free_run.end(reason)


class Worker:
    """Takes replies from a queue, asks their reference, and hands the numbers to the sinks.

    Each reference has a worker of its own, so that none waits for another one. ``charge`` is told
    of tokens that are read beyond the one reading that a reply was admitted for, ``give_back`` of
    replies that are given up, which may never have been read.
    """

    def __init__(
        self,
        queue: ShadowQueue[Waiting],
        reference: Reference,
        settings: ShadowSettings,
        *,
        metrics: Metrics,
        yielding: Yielding,
        free_runner: FreeRunner,
        sinks: Sequence[Sink],
        charge: Callable[[int], None],
        give_back: Callable[[Waiting], None],
    ) -> None:
        self._queue = queue
        self._reference = reference
        self._settings = settings
        self._metrics = metrics
        self._yielding = yielding
        self._free_runner = free_runner
        self._sinks = sinks
        self._charge = charge
        self._give_back = give_back
        self._num_scored = 0

    async def run(self) -> None:
        """Score, for ever."""
        while True:
            # In a frame of its own: nothing of the last request stays while none comes.
            await self._score_next()

    async def _score_next(self) -> None:
        since, item = await self._queue.get()
        try:
            await self._score(since, item)
        except asyncio.CancelledError:
            item.give_up("stopped")
            raise
        except Exception:
            # The border of the shadow: a defect costs this score alone.
            logger.exception("the shadow of request %s failed", item.candidate.request_id)
            item.give_up("error")

    async def _score(self, since: float, item: Waiting) -> None:
        candidate, reference = item.candidate, self._reference
        until = since + self._settings.queue_s
        if not await self._yielding.wait_idle(candidate.model, until, self._queue.age_out):
            self._drop_unread(item, "busy")
            return
        with ExitStack() as stack:
            try:
                scorer = await reference.scorer()
                # A score may take longer than idleness is borne.
                stack.enter_context(reference.using())
            except NarrowgateError as error:
                logger.debug("no reference: %s", error)
                self._drop_unread(item, "reference")
                return
            await self._score_with(scorer, since, item)
        # Not behind a score that was put back.
        if candidate.is_over and candidate.free_run is not None:
            await self._free_runner.run(candidate.free_run, reference)

    def _drop_unread(self, item: Waiting, reason: Literal["busy", "reference"]) -> None:
        item.candidate.drop(reason)
        self._give_back(item)

    async def _score_with(self, scorer: Scorer, since: float, item: Waiting) -> None:
        candidate, reference = item.candidate, self._reference
        try:
            scored = await self._ask(scorer, item)
            divergence = await piecewise(item.captured.positions, scored, compare)
        except Yielded:
            self._metrics.counters["shadow_yields_total"].labels(candidate.model).inc()
            self._put_back(since, item)
            return
        except TimeoutError:
            candidate.drop("timeout")
            await reference.suspect()
            return
        except ContextLengthExceeded:
            candidate.drop("too_long")
            return
        except RowsLost as error:
            logger.info("request %s: no exact score: %s", candidate.request_id, error)
            candidate.drop("rows")
            return
        except (ApiError, NotANumber) as error:
            candidate.drop("error")
            # The words of a refusal may quote what was sent.
            reference.fail(error.code if isinstance(error, EngineRefused) else str(error))
            return
        reference.succeed()
        await leisure()
        # Nothing waits from here on: all sinks have the record of what counts as scored, or none.
        lag = self._metrics.histograms["shadow_lag_seconds"].labels(candidate.model)
        lag.observe(time.monotonic() - since)
        self._hand_on(item, divergence, item.variant)
        candidate.score()
        self._num_scored += 1
        every = self._settings.floor_every
        # The full model's own replies are such a comparison already.
        if every and self._num_scored % every == 0 and item.variant != FULL:
            await self._measure_floor(scorer, item, scored)

    async def _ask(self, scorer: Scorer, item: Waiting) -> list[ScoredPosition]:
        # What is broken off has cost something, too.
        await leisure()
        self._count_tokens(item.num_tokens)
        if item.num_broken_off:
            self._charge(item.num_tokens)
        return await self._unless_busy(item, reading(scorer, item.captured))

    def _put_back(self, since: float, item: Waiting) -> None:
        again = replace(item, num_broken_off=item.num_broken_off + 1)
        if again.num_broken_off < _MAX_ATTEMPTS:
            self._queue.put_back(since, again)
        else:
            item.candidate.drop("busy")

    async def _unless_busy(self, item: Waiting, work: Awaitable[_T]) -> _T:
        timeout_s = self._settings.score_timeout_s
        return await self._yielding.unless_busy(item.candidate.model, work, timeout_s=timeout_s)

    async def _measure_floor(
        self, scorer: Scorer, item: Waiting, first: list[ScoredPosition]
    ) -> None:
        """Let the reference read the same text in other pieces; the difference is noise."""
        token_ids, start, asked = text_of(item.captured)
        ids = token_ids[start:]
        cut = len(ids) // 2
        if not cut:
            return
        self._charge(2 * len(token_ids))
        try:
            self._count_tokens(len(token_ids))
            second = await self._unless_busy(item, scorer.score(token_ids, start, asked[:cut]))
            self._count_tokens(len(token_ids))
            rest = scorer.score(token_ids, start + cut, asked[cut:])
            second += await self._unless_busy(item, rest)
            pairs = list(zip(first, second, strict=True))
            floor = await piecewise(ids, pairs, _floor)
            await leisure()
            self._hand_on(item, floor, FULL)
        except (Yielded, TimeoutError, ApiError, NotANumber) as error:
            logger.debug("no noise floor this time: %s", type(error).__name__)

    def _count_tokens(self, count: int) -> None:
        counter = self._metrics.counters["shadow_reference_tokens_total"]
        counter.labels(self._reference.spec.alias).inc(count)

    def _hand_on(self, item: Waiting, divergence: Divergence, variant: str) -> None:
        candidate = item.candidate
        if not math.isfinite(divergence.mean_kl):
            raise NotANumber("the divergence is no number")
        record = ScoredRequest(
            request_id=candidate.request_id,
            model=candidate.model,
            variant=variant,
            recipe_digest=candidate.recipe_digest if variant == item.variant else None,
            reference=self._reference.identity,
            slices=item.slices,
            num_prompt_tokens=len(item.captured.prompt_token_ids),
            divergence=divergence,
            estimator=divergence.estimator,
            time=time.time(),
            trace_id=candidate.trace_id,
        )
        for sink in self._sinks:
            sink.take(record)


def _floor(
    ids: Sequence[int], pairs: Sequence[tuple[ScoredPosition, ScoredPosition]]
) -> Divergence:
    return noise_floor(ids, [first for first, _ in pairs], [second for _, second in pairs])
