"""From a step's logits to what each sequence adds: a token and its text, a score, or an error."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gateway.engine.captures import Recording
from gateway.engine.generation import Generation
from gateway.engine.logprobs import note, prompt_logprobs, token_logprobs
from gateway.engine.output import Output
from gateway.engine.sampler import Sampler, sample
from gateway.engine.scheduler import Work
from gateway.engine.scoring import Scoring
from gateway.engine.sequence import Delta, Sequence, TokenLogprob
from gateway.engine.soundness import BrokenLogits, NoTokenAllowed, is_unusable, unusable_peak
from gateway.errors import ApiError

logger = logging.getLogger(__name__)

Piece = tuple[Sequence, Delta | ApiError]
"""A sequence, and what a step adds to it."""


@dataclass(frozen=True, slots=True)
class Job:
    """What the step thread needs of an answer beside its sequence."""

    sequence: Sequence
    sampler: Sampler
    output: Output
    receiver: Generation
    request_id: str
    recording: Recording | None


@dataclass(frozen=True, slots=True)
class ScoringJob:
    """What the step thread needs of a text that is scored."""

    sequence: Sequence
    receiver: Scoring
    request_id: str


def postprocess(
    work: list[Work], logits: torch.Tensor, jobs: Mapping[Sequence, Job | ScoringJob]
) -> list[Piece]:
    """Choose a token for each sequence whose prompt is read, and return what it adds.

    ``logits``, float32 [rows, vocab], has the rows that ``work`` wanted, in its order.
    """
    pieces: list[Piece] = []
    choosing: list[Job] = []
    rows: list[int] = []
    stop = 0
    for item in work:
        start, stop = stop, stop + item.wanted
        job = jobs[item.sequence]
        is_scored = item.sequence.logits_from is not None
        if is_scored and (peak := unusable_peak(logits[start:stop])) is not None:
            pieces.append(_broken(job, peak))
            continue
        if isinstance(job, ScoringJob):
            job.receiver.take(item, logits[start:stop])
            if not item.sequence.num_pending:
                pieces.append((item.sequence, Delta("", finish_reason="stop")))
            continue
        if is_scored:
            _score_prompt(item, logits[start:stop])
        if item.samples and not item.sequence.params.max_tokens:
            pieces.append((item.sequence, job.output.nothing()))
        elif item.samples:
            choosing.append(job)
            rows.append(stop - 1)
    if choosing:
        pieces += _choose(choosing, logits if len(rows) == stop else logits[rows])
    return pieces


def _broken(job: Job | ScoringJob, peak: float) -> Piece:
    logger.error("request %s: logits whose maximum is %s", job.request_id, peak)
    return job.sequence, BrokenLogits(peak)


def _choose(jobs: list[Job], logits: torch.Tensor) -> list[Piece]:
    """Choose the next token of each job from its row of ``logits``."""
    pieces: list[Piece] = []
    peaks, peak_ids = (column.tolist() for column in logits.max(dim=1))
    sound = [row for row, peak in enumerate(peaks) if not is_unusable(peak)]
    if len(sound) < len(jobs):
        for job, peak in zip(jobs, peaks, strict=True):
            if is_unusable(peak):
                pieces.append(_broken(job, peak))
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
    jobs: list[Job], logits: torch.Tensor, token_ids: list[int | None]
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


def _record(jobs: list[Job], logits: torch.Tensor, token_ids: list[int | None]) -> None:
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
