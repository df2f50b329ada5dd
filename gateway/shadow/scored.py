"""What the shadow hands on: the numbers of one scored request, and who takes them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from gateway.shadow.divergence import Divergence
from gateway.shadow.ledger_entry import LedgerEntry
from gateway.shadow.slices import by_slice
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


NoteSlices = Callable[[str, str, Iterable[str]], None]
"""Is told of a model, its variant, and the slices of a request that was drawn and answered."""


class Sink(Protocol):
    """Takes scored requests."""

    def take(self, record: ScoredRequest) -> None:
        """Take one; must not block."""


def entry_of(record: ScoredRequest) -> LedgerEntry:
    """Return what the ledger keeps of a scored request."""
    found = record.divergence
    return LedgerEntry(
        time=record.time,
        request_id=record.request_id,
        model=record.model,
        variant=record.variant,
        recipe_digest=record.recipe_digest or "",
        reference_digest=record.reference,
        estimator=record.estimator,
        slices=by_slice(
            record.slices,
            divergences=found.kl,
            agreeing=found.agrees,
            delta_nlls=found.nll_delta,
        ),
        max_divergence=max(found.kl),
        first_divergence=found.first_divergence,
    )
