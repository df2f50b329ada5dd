"""Who computes what in the next step: pure decisions, no clock, no thread, no tensor."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.engine.pages import PageBudget, PageSizes
from gateway.engine.prefixes import Prefix, PrefixCache
from gateway.engine.sequence import Sequence

MAX_NUM_SEQUENCES = 16
TOKEN_BUDGET = 512
SMALL_CHUNK = 128
"""Prompt tokens that a step reads while others decode, so that their tokens keep coming, and of a
prompt whose logits are wanted, because each token of it costs a row of them."""
_UNBOUNDED = PageSizes(1 << 40)


@dataclass(frozen=True, slots=True)
class Work:
    """Token ids that one sequence feeds to the model in a step.

    ``wanted`` says of how many of them, the last ones, logits are needed: of one where the sequence
    samples, and of more where it wants those of its prompt.
    """

    sequence: Sequence
    token_ids: list[int]
    start: int
    """How many tokens of the sequence come before these."""
    samples: bool
    wanted: int


@dataclass(slots=True)
class Counts:
    """What happened since the start, for the metrics."""

    preemptions: int = 0
    prompt_tokens: int = 0
    """Tokens of the prompts that were begun, those of preempted sequences once more."""
    shared_tokens: int = 0
    """How many of them a cache of an earlier sequence already held."""


class Scheduler:
    """Continuous batching: in every step each running sequence gets what it can use.

    Background sequences, one at a time and in small chunks, fill the steps that no other sequence
    needs; theirs are the first pages to be taken away.

    Decoding sequences come first, one token each; prompts share what is left of the token budget,
    in chunks, so that short ones are done first. A sequence is admitted when its pages are free.
    When a decoding sequence finds no free page, prefixes that nobody runs on are forgotten, least
    recently used first, then the youngest running sequence gives its pages up: it goes back to the
    head of the queue with all tokens it has, and reads them again later.

    ``sizes.longest`` must hold any sequence that is added, prompt and answer.
    """

    def __init__(
        self,
        *,
        max_num_sequences: int = MAX_NUM_SEQUENCES,
        token_budget: int = TOKEN_BUDGET,
        sizes: PageSizes = _UNBOUNDED,
        shares_prefixes: bool = True,
    ) -> None:
        if not 1 <= max_num_sequences <= token_budget:
            raise ValueError(
                f"max_num_sequences is {max_num_sequences}: must be 1 to {token_budget}, "
                "the token budget of a step"
            )
        self.pages = PageBudget(sizes)
        self.counts = Counts()
        self._max_num_sequences = max_num_sequences
        self._token_budget = token_budget
        self._prefixes = PrefixCache() if shares_prefixes else None
        self._waiting: deque[Sequence] = deque()
        self._running: dict[Sequence, Prefix | None] = {}  # in order of admission
        self._background: deque[Sequence] = deque()  # only the first may hold pages

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._running
        yield from self._waiting
        yield from self._background

    @property
    def has_work(self) -> bool:
        """Return whether any sequence is waiting or running, and need not wait for others."""
        if self._running or self._waiting:
            return True
        first = self._background[0] if self._background else None
        return first is not None and (first.is_cancelled or first.can_go_on)

    @property
    def num_running(self) -> int:
        """Return how many sequences hold pages."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Return how many sequences wait for pages or for one of the others to end."""
        return len(self._waiting)

    @property
    def num_held_pages(self) -> int:
        """Return the pages of sequences; those of other prefixes are as good as free."""
        kept = 0 if self._prefixes is None else self._prefixes.num_pages
        return self.pages.used - kept

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence behind all others of its kind."""
        (self._background if sequence.is_background else self._waiting).append(sequence)

    def remove(self, sequence: Sequence, *, keeps_prefix: bool = True) -> None:
        """Forget a sequence that finished, failed or was cancelled; unknown ones are ignored.

        What it read is kept for prompts that begin alike, unless ``keeps_prefix`` is false because
        its cache may be damaged.
        """
        if sequence in self._running:
            self._retire(sequence, keeps_prefix=keeps_prefix)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        elif sequence in self._background:
            self._drop_pages(sequence)
            self._background.remove(sequence)

    def schedule(self) -> list[Work]:
        """Return the work of the next step and count it as computed."""
        self._share_prompts()
        work = self._decode()
        budget = self._token_budget - len(work)
        if work:
            budget = min(budget, SMALL_CHUNK)
        self._admit(budget)
        read = self._read(budget)
        while not work and not read and len(self._running) > 1:
            # Prompts that are read in part hold all pages between them.
            self._preempt(next(reversed(self._running)))
            read = self._read(budget)
        return work + read or self._fill()

    def _share_prompts(self) -> None:
        """Let new prompts begin with those that the last steps have read."""
        if self._prefixes is None:
            return
        for sequence, prefix in self._running.items():
            if prefix is None and sequence.is_decoding:
                shared = Prefix(sequence.prompt_ids, sequence.cache, 0)
                self._running[sequence] = shared
                self._prefixes.add(shared)

    def _decode(self) -> list[Work]:
        work: list[Work] = []
        for sequence in [each for each in self._running if each.is_decoding]:
            while sequence in self._running and not self._reserve(sequence, 1):
                self._preempt(next(reversed(self._running)))
            if sequence in self._running:
                work.append(_feed(sequence, 1))
        return work

    def _admit(self, budget: int) -> None:
        """Start waiting sequences while there is room."""
        while self._waiting and budget > 0 and len(self._running) < self._max_num_sequences:
            sequence = self._waiting[0]
            prefix, count = self._shared_prefix(sequence)
            chunk = self._begin(sequence, budget, prefix, count) or self._begin(sequence, budget)
            if not chunk:
                return
            self._waiting.popleft()
            self._running[sequence] = None
            self.counts.prompt_tokens += sequence.num_tokens
            self.counts.shared_tokens += sequence.num_computed
            budget -= chunk

    def _begin(
        self, sequence: Sequence, budget: int, prefix: Prefix | None = None, count: int = 0
    ) -> int:
        """Take the pages of a sequence's first chunk; return its tokens, 0 if there is no room."""
        sequence.num_computed, sequence.shared = count, prefix
        chunk = min(sequence.num_pending, budget)
        # One page for each of the others, so that none is preempted at once.
        fits = self._reserve(sequence, chunk, spare=len(self._running), keep=prefix)
        return chunk if fits else 0

    def _shared_prefix(self, sequence: Sequence) -> tuple[Prefix | None, int]:
        found = None if self._prefixes is None else self._prefixes.longest(sequence.token_ids)
        prefix, count = found or (None, 0)
        if sequence.logits_from is not None:
            count = min(count, sequence.logits_from)
        return (prefix, count) if count else (None, 0)

    def _read(self, budget: int) -> list[Work]:
        """Share the budget between the prompts: what a short one leaves goes to longer ones."""
        work: list[Work] = []
        reading = [each for each in self._running if not each.is_decoding]
        reading.sort(key=lambda each: each.num_pending)  # stable: first come, first served
        for index, sequence in enumerate(reading):
            count = min(sequence.num_pending, -(-budget // (len(reading) - index)))
            if sequence.logits_from is not None:
                count = min(count, SMALL_CHUNK)
            if count and self._reserve(sequence, count):
                budget -= count
                work.append(_feed(sequence, count))
        return work

    def _reserve(
        self, sequence: Sequence, count: int, *, spare: int = 0, keep: Prefix | None = None
    ) -> bool:
        """Take the pages for ``count`` more tokens, at the cost of prefixes that nobody runs on.

        ``spare`` pages must be free beside them. ``keep`` is not forgotten.
        """
        need = self.pages.sizes.needed(sequence.num_computed + count) - sequence.num_pages
        while need + (spare if need else 0) > self.pages.free:
            given_up = 0 if self._prefixes is None else self._prefixes.evict(keep=keep)
            if given_up:
                self.pages.give_back(given_up)
            elif not self._stop_background(sequence):
                return False
        self.pages.take(max(0, need))
        sequence.num_pages += max(0, need)
        return True

    def _fill(self) -> list[Work]:
        """Return the next chunk of the first background sequence, if there is one and it fits."""
        if not self._background or not self._background[0].can_go_on:
            return []
        sequence = self._background[0]
        count = min(sequence.num_pending, SMALL_CHUNK)
        return [_feed(sequence, count)] if self._reserve(sequence, count) else []

    def _stop_background(self, claimant: Sequence) -> bool:
        """Take the pages of the background sequence, if it has any and is not the claimant."""
        sequence = self._background[0] if self._background else claimant
        if sequence is claimant or not sequence.num_pages:
            return False
        self._drop_pages(sequence)
        self._start_over(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._retire(sequence, keeps_prefix=False)
        self._start_over(sequence)
        self._waiting.appendleft(sequence)

    def _start_over(self, sequence: Sequence) -> None:
        """Let a sequence without pages read its tokens again; no logits are wanted twice."""
        if sequence.logits_from is not None:
            sequence.logits_from = max(sequence.logits_from, sequence.num_computed)
        sequence.num_computed = 0
        self.counts.preemptions += 1

    def _retire(self, sequence: Sequence, *, keeps_prefix: bool) -> None:
        """Take a running sequence's cache and pages away."""
        prefix = self._running.pop(sequence)
        if prefix is not None and self._prefixes is not None:
            self._prefixes.discard(prefix)
        if keeps_prefix and self._prefixes is not None and sequence.num_computed:
            read = sequence.token_ids[: sequence.num_computed]
            self._prefixes.add(Prefix(read, sequence.cache, sequence.num_pages))
            sequence.num_pages = 0
        self._drop_pages(sequence)

    def _drop_pages(self, sequence: Sequence) -> None:
        self.pages.give_back(sequence.num_pages)
        sequence.cache = sequence.shared = None
        sequence.num_pages = 0


def _feed(sequence: Sequence, count: int) -> Work:
    start = sequence.num_computed
    token_ids = sequence.pending_ids(count)
    sequence.num_computed += len(token_ids)
    samples = sequence.num_pending == 0 and not sequence.is_background
    wanted = int(samples)
    if sequence.logits_from is not None and start < len(sequence.prompt_ids):
        wanted = max(wanted, sequence.num_computed - max(start, sequence.logits_from))
    return Work(sequence, token_ids, start, samples, wanted)
