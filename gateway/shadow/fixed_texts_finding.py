"""Pure: what became of reading fixed texts, and whether that is damage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Outcome(StrEnum):
    """What became of the check, from the worst to the best."""

    CHANGED = "changed"
    """It is further from what the build kept than a sound engine is."""
    UNREAD = "unread"
    """The engine did not read the texts, or what was kept of them cannot be used."""
    OTHER_NUMERICS = "other_numerics"
    """It computes otherwise than the engine whose reading is kept."""
    TOO_LONG = "too_long"
    """A text is longer than its context."""
    NOT_KEPT = "not_kept"
    """The build kept nothing, no engine was read then, or the artifact is not here."""
    OK = "ok"


_ORDER = tuple(Outcome)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found of an engine, or of the worst engine of a variant."""

    outcome: Outcome
    reason: str
    time: float
    """In seconds since the epoch."""
    distances: Mapping[str, float] = field(default_factory=dict)
    """By text, and of all: nats a token."""
    usual: Mapping[str, float] = field(default_factory=dict)
    """The same as it was at the build."""
    limits: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0
    seconds: float | None = None
    """That the reading took."""

    @property
    def changed(self) -> list[str]:
        """Return the texts beyond their limits, ``all`` first."""
        return [name for name, limit in self.limits.items() if not self.distances[name] <= limit]


def judged(found: Finding) -> Finding:
    """Return a reading as it is, or as :attr:`Outcome.CHANGED` where a text is beyond its limit."""
    changed = found.changed
    if not changed:
        return found
    words = ", ".join(
        f"{name} {found.distances[name]:.4g} nats (limit {found.limits[name]:.4g}, at the build "
        f"{found.usual[name]:.4g})"
        for name in changed
    )
    return replace(found, outcome=Outcome.CHANGED, reason=f"changed since the build: {words}")


def worst(found: Iterable[Finding]) -> Finding | None:
    """Return what stands for all engines of a variant; None of none."""
    return min(found, key=lambda each: _ORDER.index(each.outcome), default=None)
