"""What the shadow hands on: the numbers of one scored request, and who takes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.shadow.divergence import Divergence
from gateway.shadow_settings import Estimator


@dataclass(frozen=True, slots=True)
class ScoredRequest:
    """One request in numbers; no text, no token."""

    request_id: str
    model: str
    variant: str
    """``full`` also for the noise floor: the reference against itself."""
    recipe_digest: str | None
    reference: str
    """Of the reference: the digest of its weights' source, or its address."""
    slices: Mapping[str, range]
    """By name, the positions of the answer that the slice holds."""
    num_prompt_tokens: int
    divergence: Divergence
    estimator: Estimator
    time: float
    """In seconds since the epoch."""
    trace_id: str | None = None
    """Of the request's trace, where one is kept."""

    @property
    def num_tokens(self) -> int:
        """Return the tokens of the answer."""
        return len(self.divergence.kl)


class Sink(Protocol):
    """Takes scored requests."""

    def take(self, record: ScoredRequest) -> None:
        """Take one; must not block."""
