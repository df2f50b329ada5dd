"""The nouns of generation: what is asked for, a sequence on its way, and a piece of its answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from gateway.engine.trace_headers import TRACE_HEADERS

FinishReason = Literal["stop", "length"]

GREEDY_BELOW = 1e-5
"""Temperatures under this one would overflow float32 logits; they mean greedy anyway."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request wants its tokens chosen and its text ended.

    ``max_tokens`` already fits into the context; 0 only reads the prompt. ``top_k`` 0 means no
    limit. ``top_logprobs`` None asks for no log-probabilities, 0 for those of the chosen tokens
    alone; ``prompt_logprobs`` is the same for the prompt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_tokens: int = 0
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    returns_token_ids: bool = False
    keeps_end_logprob: bool = False
    """Whether the token that ends the answer has a log-probability in the reply, too."""

    @property
    def is_greedy(self) -> bool:
        """Return whether the most probable token is always taken."""
        return self.temperature < GREEDY_BELOW or self.top_k == 1

    def end_ids(self, eos_ids: frozenset[int]) -> frozenset[int]:
        """Return the ids that end the answer of a model with these end tokens."""
        return self.stop_token_ids if self.ignore_eos else self.stop_token_ids | eos_ids


@dataclass(slots=True, eq=False)
class Sequence:
    """Token ids of one request and how far the model has read them."""

    prompt_ids: list[int]
    params: SamplingParams
    output_ids: list[int] = field(default_factory=list)  # appended by the engine loop
    num_computed: int = 0  # tokens handed to the model; advanced by the scheduler
    num_pages: int = 0  # of the cache's budget; the scheduler's
    logits_from: int | None = None  # from this position on, logits of the prompt are wanted too
    is_background: bool = False  # computed only in steps that nothing else needs
    is_ready: Callable[[], bool] | None = None  # of a background sequence; None: always
    shared: Any = None  # the prefix that the cache will begin with; the scheduler's
    cache: Any = None  # the runner's own; set by the engine loop at the first chunk
    is_cancelled: bool = False  # set by the event loop, read once per step
    # Of the request in which the sequence was made.
    trace_headers: Mapping[str, str] = field(default_factory=TRACE_HEADERS.get)
    # One entry for each prompt token but the first; appended by the engine loop.
    prompt_logprobs: list["TokenLogprob"] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.params.prompt_logprobs is not None:
            self.logits_from = 0

    @property
    def max_length(self) -> int:
        """Return the most tokens, prompt and output, that this sequence can reach."""
        return len(self.prompt_ids) + self.params.max_tokens

    def pending_ids(self, limit: int) -> list[int]:
        """Return up to ``limit`` token ids that the model has not read yet, oldest first."""
        start = self.num_computed
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : start - num_prompt + limit]
        return self.token_ids[start : start + limit]

    @property
    def token_ids(self) -> list[int]:
        """Return prompt and answer so far."""
        return self.prompt_ids + self.output_ids

    @property
    def num_tokens(self) -> int:
        """Return how many token ids there are, prompt and answer so far."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_pending(self) -> int:
        """Return how many token ids the model has not read yet."""
        return self.num_tokens - self.num_computed

    @property
    def can_go_on(self) -> bool:
        """Return whether nothing is waited for before it is read further."""
        return self.is_ready is None or self.is_ready()

    @property
    def is_decoding(self) -> bool:
        """Return whether the model has read all but the token that it chose last."""
        return bool(self.output_ids) and self.num_pending == 1


@dataclass(slots=True)
class SequenceTimes:
    """When what happened to a sequence, on the monotonic clock in seconds."""

    arrived: float
    scheduled: float | None = None
    first_token: float | None = None
    last_token: float | None = None


class SpanSink(Protocol):
    """Who is told of sequences that have ended; :mod:`gateway.engine.spans` sends them."""

    def ended(self, sequence: Sequence, times: SequenceTimes, reason: str) -> None:
        """Take a sequence that ended for this reason."""

    def close(self) -> None:
        """Send what is left."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a token, and the most probable ids with theirs.

    ``rank`` is 1 for the most probable token; 0 where nobody asked.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer; the last one carries the finish reason."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    token_ids: tuple[int, ...] = ()  # only where the request asked for them
