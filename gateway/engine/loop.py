"""The engine loop: one thread that schedules, runs the model, samples and hands tokens over."""

import asyncio
import logging
import queue
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gateway.engine.captures import Recording
from gateway.engine.generation import Generation
from gateway.engine.logprobs import note, prompt_logprobs, token_logprobs
from gateway.engine.metrics import EngineMetrics
from gateway.engine.output import Output
from gateway.engine.sampler import Sampler, sample
from gateway.engine.scheduler import Scheduler, Work
from gateway.engine.scoring import Scoring
from gateway.engine.sequence import Delta, Sequence, TokenLogprob
from gateway.engine.soundness import BrokenLogits, NoTokenAllowed, is_unusable, unusable_peak
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

Piece = tuple[Sequence, Delta | ApiError]


@dataclass(frozen=True, slots=True)
class _Job:
    """What the step thread needs of an answer beside its sequence."""

    sequence: Sequence
    sampler: Sampler
    output: Output
    receiver: Generation
    request_id: str
    recording: Recording | None


@dataclass(frozen=True, slots=True)
class _ScoringJob:
    """What the step thread needs of a text that is scored."""

    sequence: Sequence
    receiver: Scoring
    request_id: str


class EngineLoop:
    """Owns the model's thread; all public methods are called on the event loop's thread.

    The step thread never waits for the event loop: what it produced in a step crosses with one
    ``call_soon_threadsafe``. A failing step fails the requests in it, and the loop lives on.
    """

    def __init__(self, runner: ModelRunner, scheduler: Scheduler, metrics: EngineMetrics) -> None:
        self._runner = runner
        self._scheduler = scheduler  # step thread
        self._metrics = metrics  # step thread
        self._jobs: dict[Sequence, _Job | _ScoringJob] = {}  # step thread
        self._inbox: queue.SimpleQueue[_Job | _ScoringJob | None] = queue.SimpleQueue()
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
        self._enqueue(_Job(sequence, sampler, output, generation, request_id, recording))
        return generation

    def score(self, scoring: Scoring, *, request_id: str = "-") -> None:
        """Queue a text to be scored in steps that nothing else needs.

        Raises:
            TooManyTexts: as many as may wait do so already.
        """
        if sum(isinstance(each, Scoring) for each in self._open) >= MAX_SCORINGS:
            raise TooManyTexts(f"{MAX_SCORINGS} texts wait to be scored already: send it later")
        scoring.wake = self._wake
        self._enqueue(_ScoringJob(scoring.sequence, scoring, request_id))

    def _enqueue(self, job: _Job | _ScoringJob) -> None:
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
                if isinstance(job, _Job):
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
            pieces = self._sample(work, logits)
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

    def _sample(self, work: list[Work], logits: torch.Tensor) -> list[Piece]:
        """Choose a token for each sequence whose prompt is read, and return what it adds.

        ``logits`` has the rows that ``work`` wanted, in its order.
        """
        pieces: list[Piece] = []
        jobs: list[_Job] = []
        rows: list[int] = []
        stop = 0
        for item in work:
            start, stop = stop, stop + item.wanted
            job = self._jobs[item.sequence]
            is_scored = item.sequence.logits_from is not None
            if is_scored and (peak := unusable_peak(logits[start:stop])) is not None:
                pieces.append(self._broken(job, peak))
                continue
            if isinstance(job, _ScoringJob):
                job.receiver.take(item, logits[start:stop])
                if not item.sequence.num_pending:
                    pieces.append((item.sequence, Delta("", finish_reason="stop")))
                continue
            if is_scored:
                _score_prompt(item, logits[start:stop])
            if item.samples and not item.sequence.params.max_tokens:
                pieces.append((item.sequence, job.output.nothing()))
            elif item.samples:
                jobs.append(job)
                rows.append(stop - 1)
        if jobs:
            pieces += self._choose(jobs, logits if len(rows) == stop else logits[rows])
        return pieces

    def _broken(self, job: _Job | _ScoringJob, peak: float) -> Piece:
        logger.error("request %s: logits whose maximum is %s", job.request_id, peak)
        return job.sequence, BrokenLogits(peak)

    def _choose(self, jobs: list[_Job], logits: torch.Tensor) -> list[Piece]:
        """Choose the next token of each job from its row of ``logits``."""
        pieces: list[Piece] = []
        peaks, peak_ids = (column.tolist() for column in logits.max(dim=1))
        sound = [row for row, peak in enumerate(peaks) if not is_unusable(peak)]
        if len(sound) < len(jobs):
            for job, peak in zip(jobs, peaks, strict=True):
                if is_unusable(peak):
                    pieces.append(self._broken(job, peak))
            jobs, logits = [jobs[row] for row in sound], logits[sound]
            peaks, peak_ids = [peaks[row] for row in sound], [peak_ids[row] for row in sound]
        token_ids = sample([job.sampler for job in jobs], logits, peaks, peak_ids)
        logprobs = _chosen_logprobs(jobs, logits, token_ids)
        _record(jobs, logits, token_ids)
        for row, (job, token_id) in enumerate(zip(jobs, token_ids, strict=True)):
            if token_id is None:
                pieces.append((job.sequence, NoTokenAllowed()))
                continue
            job.sequence.output_ids.append(token_id)
            job.sampler.push(token_id)
            piece = job.output.push(token_id, logprobs.get(row))
            if piece is not None:
                pieces.append((job.sequence, piece))
        return pieces

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


def _score_prompt(item: Work, logits: torch.Tensor) -> None:
    """Keep the log-probabilities of the prompt tokens that follow those of ``item``."""
    sequence = item.sequence
    # What was read again, after its cache had been given up, is known already.
    stop = item.start + len(item.token_ids)
    known = len(sequence.prompt_logprobs)
    ids = sequence.prompt_ids[known + 1 : stop + 1]
    if ids:
        first = known - (stop - item.wanted)
        rows = logits[first : first + len(ids)]
        num_top = sequence.params.prompt_logprobs or 0
        sequence.prompt_logprobs += prompt_logprobs(rows, ids, num_top)


def _chosen_logprobs(
    jobs: list[_Job], logits: torch.Tensor, token_ids: list[int | None]
) -> dict[int, TokenLogprob]:
    """Return the log-probabilities of the chosen tokens by row, where they were asked for."""
    wanted = [
        (row, token_id, job.sequence.params.top_logprobs)
        for row, (job, token_id) in enumerate(zip(jobs, token_ids, strict=True))
        if token_id is not None and job.sequence.params.top_logprobs is not None
    ]
    if not wanted:
        return {}
    rows, ids, num_top = ([entry[place] for entry in wanted] for place in range(3))
    some = logits if len(rows) == len(jobs) else logits[rows]
    return dict(zip(rows, token_logprobs(some, ids, num_top), strict=True))


def _record(jobs: list[_Job], logits: torch.Tensor, token_ids: list[int | None]) -> None:
    """Note the chosen tokens of those answers that are captured."""
    wanted = [
        (row, token_id, job.recording)
        for row, (job, token_id) in enumerate(zip(jobs, token_ids, strict=True))
        if token_id is not None and job.recording is not None
    ]
    if not wanted:
        return
    rows = [row for row, _, _ in wanted]
    num_top = [recording.num_top for _, _, recording in wanted]
    some = logits if len(rows) == len(jobs) else logits[rows]
    noted = note(some, [token_id for _, token_id, _ in wanted], max(num_top))
    chosen, top, top_ids = noted.chosen.tolist(), noted.top.numpy(), noted.top_ids.numpy()
    for place, (row, token_id, recording) in enumerate(wanted):
        count = recording.num_top
        recording.take(token_id, chosen[place], top[place, :count], top_ids[place, :count])
        if recording.rows is not None:
            recording.rows.take(logits[row])
