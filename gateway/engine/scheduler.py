"""Who computes what in the next step: pure decisions, no clock, no thread, no tensor."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """Token ids that one sequence feeds to the model in a step.

    ``samples`` is false for all chunks of a prompt but the last. ``wanted`` is how many of the last
    positions need logits: one to sample from, all of a prompt whose log-probabilities are wanted.
    """

    sequence: Sequence
    token_ids: list[int]
    samples: bool
    wanted: int


class Scheduler:
    """First come, first served, with a bound on the tokens of one step.

    Long prompts are read in chunks, so a step stays short: decoding sequences get their token
    in every step, and a cancelled one is gone at the next.
    """

    def __init__(self, *, max_num_sequences: int = 1, token_budget: int = 512) -> None:
        if not 1 <= max_num_sequences <= token_budget:
            raise ValueError(
                f"max_num_sequences is {max_num_sequences}: must be 1 to {token_budget}, "
                "the token budget of a step"
            )
        self._max_num_sequences = max_num_sequences
        self._token_budget = token_budget
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._waiting

    @property
    def has_work(self) -> bool:
        """Return whether any sequence is waiting or running."""
        return bool(self._running or self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind all others."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that finished, failed or was cancelled; unknown ones are ignored."""
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def schedule(self) -> list[Work]:
        """Return the work of the next step and count it as computed.

        Decoding sequences come first (one token each), then prompts in their order of arrival
        share what is left of the budget.
        """
        self._admit()
        decoding = [sequence for sequence in self._running if sequence.output_ids]
        reading = [sequence for sequence in self._running if not sequence.output_ids]
        work: list[Work] = []
        budget = self._token_budget
        for sequence in decoding + reading:
            token_ids = sequence.pending_ids(budget)
            if not token_ids:
                break
            budget -= len(token_ids)
            sequence.num_computed += len(token_ids)
            samples = sequence.num_pending == 0
            wanted = len(token_ids) if sequence.wants_prompt_logprobs else int(samples)
            work.append(Work(sequence, token_ids, samples, wanted))
        return work

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_num_sequences:
            self._running.append(self._waiting.popleft())
