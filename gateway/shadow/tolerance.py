"""How much divergence is borne, and how rarely an alarm may be false."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from compression.fidelity_record import SliceFidelity
from gateway.errors import SettingsError
from gateway.shadow.slices import ALL

MEASURED = MappingProxyType(
    {
        "arithmetic": "domain:math",
        "chinese": "script:cjk",
        "code": "domain:code",
        "json": "domain:json",
    }
)
"""Texts of the offline comparison that stand for a slice of traffic; the others, which are prose
in Latin script, count for the pool alone."""


class Source(StrEnum):
    """Where a tolerance comes from."""

    SET = "set"
    MANIFEST = "manifest"
    POOLED = "manifest, all texts"
    LEARNED = "learned live"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The mean divergence of a slice, in nats a token, up to which it counts as undamaged."""

    nats: float
    source: Source


@dataclass(frozen=True, slots=True)
class ToleranceRules:
    """How tolerances are made; ``floor`` and ``ceiling`` are in nats a token.

    The floor is what kernels and other traffic than the measured texts may cost. The ceiling bounds
    what was measured or learned: a model that was bad when it was made is not sound because it
    stays so. Only what is set by hand may go beyond both.
    """

    factor: float = 1.2
    floor: float = 0.01
    ceiling: float = 0.3
    by_hand: Mapping[str, float] = field(default_factory=dict)
    """By slice, in nats a token; ``all`` also stands for slices that nothing else is known of."""
    baseline_requests: int = 200

    def __post_init__(self) -> None:
        for name, value in self.by_hand.items():
            if not (math.isfinite(value) and value > 0):
                raise SettingsError(
                    f"the tolerance of slice {name!r} is {value}: give nats a token above 0"
                )
        if not self.factor >= 1:
            raise SettingsError(
                f"'factor' is {self.factor}: a tolerance below the measured mean is always broken, "
                "use 1 or more"
            )
        if not 0 < self.floor <= self.ceiling < math.inf:
            raise SettingsError(
                f"'floor' is {self.floor} and 'ceiling' {self.ceiling}: use 0 < floor <= ceiling"
            )
        if self.baseline_requests < 2:
            raise SettingsError(f"'baseline_requests' is {self.baseline_requests}: use 2 or more")


class Tolerances:
    """The tolerances of one variant, as far as they are known before any traffic."""

    def __init__(self, rules: ToleranceRules, fidelity: Sequence[SliceFidelity] | None) -> None:
        self.rules = rules
        known = {
            MEASURED[each.name]: self._calibrated(each.kld_mean, Source.MANIFEST)
            for each in fidelity or ()
            if each.name in MEASURED
        }
        known |= {
            name: Tolerance(nats, Source.SET) for name, nats in rules.by_hand.items() if name != ALL
        }
        self._known: Mapping[str, Tolerance] = known
        self._pooled = self._pool(fidelity)

    def of(self, name: str) -> Tolerance | None:
        """Return the tolerance of a slice; None: it must be learned from live traffic."""
        return self._known.get(name, self._pooled)

    def learned(self, mean: float, standard_error: float) -> Tolerance:
        """Return the tolerance that follows from a baseline of live traffic, in nats a token."""
        return self._calibrated(mean + 3 * standard_error, Source.LEARNED)

    def _calibrated(self, mean: float, source: Source) -> Tolerance:
        nats = max(self.rules.factor * mean, self.rules.floor)
        return Tolerance(min(nats, self.rules.ceiling), source)

    def _pool(self, fidelity: Sequence[SliceFidelity] | None) -> Tolerance | None:
        if ALL in self.rules.by_hand:
            return Tolerance(self.rules.by_hand[ALL], Source.SET)
        tokens = sum(each.tokens for each in fidelity or ())
        if not tokens:
            return None
        mean = sum(each.kld_mean * each.tokens for each in fidelity or ()) / tokens
        return self._calibrated(mean, Source.POOLED)


@dataclass(frozen=True, slots=True)
class FalseAlarmBudget:
    """At most one false alarm in so many scored requests, all slices of a variant together."""

    requests: int = 100_000

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise SettingsError(
                f"'requests' of the false-alarm budget is {self.requests}: use 1 or more"
            )

    def threshold(self, num_slices: int) -> float:
        """Return the e-value at which each of so many slices raises its alarm."""
        return float(self.requests * num_slices)

    def in_words(self, num_slices: int) -> str:
        """Return the promise as a person would give it."""
        return (
            f"at most one false alarm per {self.requests:,} scored requests, "
            f"all {num_slices} slices together"
        )
