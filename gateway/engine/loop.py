"""The engine loop: one thread that schedules, runs the model, and hands over what came of it."""

import asyncio
import logging
import queue
import threading
import time
from typing import Any, Protocol

import torch

from gateway.engine.captures import Recording
from gateway.engine.generation import Generation
from gateway.engine.metrics import EngineMetrics
from gateway.engine.output import Output
from gateway.engine.postprocess import Job, Piece, ScoringJob, postprocess
from gateway.engine.sampler import Sampler
from gateway.engine.scheduler import Scheduler, Work
from gateway.engine.scoring import Scoring
from gateway.engine.sequence import Delta, Sequence
from gateway.errors import ApiError, InternalError, Unavailable

logger = logging.getLogger(__name__)


class ModelRunner(Protocol):
    """What the loop needs of a model."""

    @property
    def max_model_len(self) -> int:
        """Return the most tokens, prompt and output, of a sequence."""

    @property
    def vocab_size(self) -> int:
        """Return the width of the logits."""

    def new_cache(self, max_tokens: int) -> Any:
        """Return an empty cache with room for that many tokens."""

    def forward(
        self, batch: list[tuple[Any, list[int], int]], *, is_reading: bool = False
    ) -> torch.Tensor:
        """Append the ids to their caches; return float32 logits [rows, vocab].

        The third item says of how many ids, the last ones, logits are wanted. ``is_reading``: what
        is computed must not depend on what was timed when the model was loaded.
        """


class TooManyTexts(Unavailable):
    """The queue of texts to be scored is full."""

    code = "too_many_texts"


MAX_SCORINGS = 64
"""Texts that may wait to be scored, the one in work included."""


class EngineLoop:
    """Owns the model's thread; all public methods are called on the event loop's thread.

    The step thread never waits for the event loop: what it produced in a step crosses with one
    ``call_soon_threadsafe``. A failing step fails the requests in it, and the loop lives on.
    """

    def __init__(self, runner: ModelRunner, scheduler: Scheduler, metrics: EngineMetrics) -> None:
        self._runner = runner
        self._scheduler = scheduler  # step thread
        self._metrics = metrics  # step thread
        self._jobs: dict[Sequence, Job | ScoringJob] = {}  # step thread
        self._inbox: queue.SimpleQueue[Job | ScoringJob | None] = queue.SimpleQueue()
        self._open: set[Generation | Scoring] = set()  # event loop
        self._progress_at = time.monotonic()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)
        self._events: asyncio.AbstractEventLoop | None = None

    def start(self, events: asyncio.AbstractEventLoop) -> None:
        """Start the step thread; its results go to ``events``."""
        self._events = events
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the step thread after its current step; unfinished requests get nothing more."""
        self._is_stopping = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def submit(
        self,
        sequence: Sequence,
        output: Output,
        *,
        sampler: Sampler | None = None,
        request_id: str = "-",
        recording: Recording | None = None,
    ) -> Generation:
        """Queue a sequence and return its answer to come; the id is for the log.

        Its tokens are noted in ``recording``, all of them before the answer's end is told.
        """
        generation = Generation(sequence)
        sampler = sampler or Sampler(sequence.params)
        self._enqueue(Job(sequence, sampler, output, generation, request_id, recording))
        return generation

    def score(self, scoring: Scoring, *, request_id: str = "-") -> None:
        """Queue a text to be scored in steps that nothing else needs.

        Raises:
            TooManyTexts: as many as may wait do so already.
        """
        if sum(isinstance(each, Scoring) for each in self._open) >= MAX_SCORINGS:
            raise TooManyTexts(f"{MAX_SCORINGS} texts wait to be scored already: send it later")
        scoring.wake = self._wake
        self._enqueue(ScoringJob(scoring.sequence, scoring, request_id))

    def _enqueue(self, job: Job | ScoringJob) -> None:
        if not self._open:
            self._progress_at = time.monotonic()
        self._open.add(job.receiver)
        self._inbox.put(job)

    def _wake(self) -> None:
        """Have the step thread look again for what it can do."""
        self._inbox.put(None)

    @property
    def num_unfinished(self) -> int:
        """Return how many requests are waiting or running."""
        return len(self._open)

    def is_stalled(self, limit_s: float) -> bool:
        """Return whether there is work, and no step was finished for ``limit_s``."""
        return bool(self._open) and time.monotonic() - self._progress_at > limit_s

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._is_stopping:
                self._receive()
                self._step()
                self._progress_at = time.monotonic()

    def _receive(self) -> None:
        """Take over new requests; sleep for one only if there is nothing else to do."""
        while not self._is_stopping:
            try:
                job = self._inbox.get(block=not self._scheduler.has_work)
            except queue.Empty:
                return
            if job is not None:
                self._jobs[job.sequence] = job
                self._scheduler.add(job.sequence)
                if isinstance(job, Job):
                    self._metrics.arrived(job.sequence)

    def _step(self) -> None:
        self._drop_cancelled()
        work = self._scheduler.schedule()
        if not work:
            return
        self._metrics.scheduled(work)
        began = time.monotonic()
        try:
            for item in work:
                if item.sequence.cache is None:
                    self._make_cache(item)
            logits = self._runner.forward(
                [(item.sequence.cache, item.token_ids, item.wanted) for item in work],
                is_reading=work[0].sequence.is_background,  # such a one is alone in its step
            )
            pieces = postprocess(work, logits, self._jobs)
            self._metrics.stepped(work, time.monotonic() - began)
        except Exception:
            # The border of the step thread: whatever went wrong must not end it.
            ids = ", ".join(self._jobs[item.sequence].request_id for item in work)
            logger.exception("a step failed, and with it the request(s) %s", ids)
            pieces = [(item.sequence, InternalError()) for item in work]
        self._emit(pieces)

    def _make_cache(self, item: Work) -> None:
        sequence = item.sequence
        sequence.cache = self._runner.new_cache(sequence.max_length)
        if sequence.shared is not None:
            sequence.cache.copy(sequence.shared.cache, item.start)
            sequence.shared = None

    def _drop_cancelled(self) -> None:
        cancelled = [sequence for sequence in self._scheduler if sequence.is_cancelled]
        self._hand_over([(self._release(sequence, "abort"), None) for sequence in cancelled])

    def _emit(self, pieces: list[Piece]) -> None:
        """Hand the step's pieces over and forget the sequences that they end."""
        batch: list[tuple[Generation | Scoring, Delta | ApiError | None]] = []
        for sequence, piece in pieces:
            reason = piece.finish_reason if isinstance(piece, Delta) else "error"
            receiver = self._jobs[sequence].receiver
            if reason is not None:
                self._release(sequence, reason)
            batch.append((receiver, piece))
        self._hand_over(batch)

    def _release(self, sequence: Sequence, reason: str) -> Generation | Scoring:
        self._metrics.ended(sequence, reason)
        # What a failed step left in a cache may be half a token.
        self._scheduler.remove(sequence, keeps_prefix=reason != "error")
        return self._jobs.pop(sequence).receiver

    def _hand_over(self, batch: list[tuple[Generation | Scoring, Delta | ApiError | None]]) -> None:
        if batch and self._events is not None and not self._events.is_closed():
            self._events.call_soon_threadsafe(self._publish, batch)

    def _publish(self, batch: list[tuple[Generation | Scoring, Delta | ApiError | None]]) -> None:
        """Runs on the event loop; None marks a cancelled request, which waits for nothing."""
        for receiver, piece in batch:
            if not isinstance(piece, Delta) or piece.finish_reason is not None:
                self._open.discard(receiver)
            if piece is not None:
                receiver.put(piece)
