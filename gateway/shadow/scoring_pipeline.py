"""Captured replies on their way to their scores: budget, queues, a worker for each reference."""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from gateway.registry import Metrics
from gateway.shadow.free_runner import FreeRunner
from gateway.shadow.free_runs import FreeRuns
from gateway.shadow.queues import ShadowQueues
from gateway.shadow.references import References
from gateway.shadow.sampling import Budget
from gateway.shadow.scored import Sink
from gateway.shadow.upkeep import again_and_again
from gateway.shadow.worker import Waiting, Worker
from gateway.shadow.yielding import Yielding
from gateway.shadow_settings import ShadowSettings


class ScoringPipeline:
    """Takes captured replies of ``models`` and has them scored, each model beside the others."""

    def __init__(
        self,
        models: Collection[str],
        settings: ShadowSettings,
        *,
        metrics: Metrics,
        references: References,
        num_busy: Callable[[], int],
        free_runs: FreeRuns,
        sinks: Sequence[Sink],
    ) -> None:
        self._budget = Budget(settings.tokens_per_second, settings.burst_tokens)
        self._queues: ShadowQueues[Waiting] = ShadowQueues(
            models,
            settings.queue_size,
            settings.queue_s,
            on_old=self._on_old,
            on_full=self._on_full,
            on_length=metrics.gauges["shadow_queue_length"].set,
            clock=time.monotonic,
        )
        self._yielding = Yielding(references, num_busy, max_running=settings.max_running)
        free_runner = FreeRunner(
            free_runs,
            self._yielding,
            settings,
            metrics=metrics,
            meanwhile=self._queues.age_out,
        )
        self._workers = [
            Worker(
                self._queues.of(model),
                references.of(model),
                settings,
                metrics=metrics,
                yielding=self._yielding,
                free_runner=free_runner,
                sinks=sinks,
                charge=self._charge,
                give_back=self._give_back,
            )
            for model in models
        ]

    @property
    def num_waiting(self) -> int:
        """Return how many replies wait, for whichever reference."""
        return len(self._queues)

    async def run(self) -> None:
        """Score, for ever; a reference that hangs holds up no other one."""
        await asyncio.gather(*(again_and_again(worker.run) for worker in self._workers))

    def take(self, item: Waiting) -> None:
        """Queue a reply, or drop it, and the free run behind it, where budget or room is spent."""
        candidate, free_run = item.candidate, item.candidate.free_run
        now = time.monotonic()
        # Room first: the budget is for what is read.
        if not self._queues.has_room(candidate.model):
            candidate.drop("queue_full")
            return
        spent = self._budget.spend(item.slices, item.num_tokens, now)
        if spent is None:
            candidate.drop("budget")
            return
        self._queues.put(candidate.model, replace(item, spent=spent))
        if free_run is not None:
            num_tokens = len(item.captured.prompt_token_ids) + free_run.limit
            spent = self._budget.spend(item.slices, num_tokens, now)
            if spent is None:
                free_run.end("budget")
            else:
                free_run.on_unread = partial(self._budget.give_back, spent)

    def close(self) -> None:
        """Give up what waits."""
        for item in self._queues.clear():
            item.candidate.drop("stopped")

    def _charge(self, count: int) -> None:
        self._budget.charge(count, time.monotonic())

    def _give_back(self, item: Waiting) -> None:
        if item.unread is not None:
            self._budget.give_back(item.unread)

    def _on_old(self, item: Waiting) -> None:
        is_idle = self._yielding.is_idle(item.candidate.model)
        item.candidate.drop("timeout" if is_idle else "busy")
        self._give_back(item)

    def _on_full(self, item: Waiting) -> None:
        item.candidate.drop("queue_full")
        self._give_back(item)
