"""What the ledger keeps of a scored request, and what it tells of many: numbers, no text."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.shadow.slices import SliceScore
from gateway.shadow_settings import Estimator


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One scored request; divergences are in nats a token, the time in seconds since the epoch."""

    time: float
    request_id: str
    model: str
    variant: str
    recipe_digest: str
    reference_digest: str
    estimator: Estimator
    slices: Mapping[str, SliceScore]
    """``all`` is among them."""
    max_divergence: float
    first_divergence: int | None
    """The first token at which the reference would have chosen another; None: it never would."""


@dataclass(frozen=True, slots=True)
class SliceAggregate:
    """All scored requests of one slice in a window of time, of one variant scored in one way."""

    model: str
    variant: str
    recipe_digest: str
    reference_digest: str
    estimator: str
    slice: str
    num_requests: int
    num_tokens: int
    num_broken: int
    """Requests without a finite divergence; the next figures leave them out."""
    mean_divergence: float | None
    """Of the requests' means, nats a token."""
    standard_error: float | None
    """Of that mean, as if requests were independent; None with fewer than two."""
    token_divergence: float | None
    """The mean over tokens, which is what the offline comparison reports."""
    max_divergence: float | None
    """The largest of any token of these requests."""
    agreement: float
    """Share of tokens where the reference would have chosen the same."""
    delta_nll: float | None
    """Mean over tokens, nats."""
    first: float
    last: float
    """Times of the first and the last request."""
