"""What pairs of answers to the same requests say: how often one side fails, and the difference."""

import math
from dataclasses import dataclass, field
from typing import Any

from gateway.shadow.binomial import interval, two_sided

CONFIDENCE = 0.95


@dataclass(slots=True)
class PairedCheck:
    """One check of both answers; ``failed`` is by who failed it: both, or one side alone."""

    num_pairs: int = 0
    both_failed: int = 0
    variant_failed: int = 0
    full_failed: int = 0

    def add(self, *, variant: bool, full: bool) -> None:
        """Take one pair: whether each side passed."""
        self.num_pairs += 1
        self.both_failed += not variant and not full
        self.variant_failed += not variant and full
        self.full_failed += variant and not full

    def as_json(self) -> dict[str, Any]:
        """Return counts, rates of failure, their difference with its interval, and McNemar's p."""
        discordant = self.variant_failed + self.full_failed
        low, high = self.difference()
        return {
            "pairs": self.num_pairs,
            "both_failed": self.both_failed,
            "only_variant_failed": self.variant_failed,
            "only_full_failed": self.full_failed,
            "variant_rate": (self.both_failed + self.variant_failed) / self.num_pairs,
            "full_rate": (self.both_failed + self.full_failed) / self.num_pairs,
            "difference": (self.variant_failed - self.full_failed) / self.num_pairs,
            "difference_low": low,
            "difference_high": high,
            "p_value": two_sided(self.variant_failed, discordant),
        }

    def difference(self) -> tuple[float, float]:
        """Return bounds of (rate of failure of the variant) - (that of the full model).

        The difference is s (2 t - 1): s the share of discordant pairs, t the variant's part of
        them. Both have an exact interval at half the error, so by Bonferroni the extremes over the
        two hold together. They exclude 0 only where t's interval excludes one half.
        """
        error = (1 - CONFIDENCE) / 2
        discordant = self.variant_failed + self.full_failed
        shares = interval(discordant, self.num_pairs, error)
        low, high = interval(self.variant_failed, discordant, error) if discordant else (0.0, 1.0)
        products = [share * (2 * part - 1) for share in shares for part in (low, high)]
        return min(products), max(products)


@dataclass(slots=True)
class LengthRatio:
    """The variant's length by the full model's, one pair a request, as a geometric mean."""

    num_pairs: int = 0
    variant_tokens: int = 0
    full_tokens: int = 0
    _sum: float = 0.0
    _sum_squared: float = 0.0

    def add(self, variant: int, full: int) -> None:
        """Take one pair of lengths in tokens; an empty answer counts as one token."""
        log = math.log(max(1, variant) / max(1, full))
        self.num_pairs += 1
        self.variant_tokens += variant
        self.full_tokens += full
        self._sum += log
        self._sum_squared += log * log

    def as_json(self) -> dict[str, Any]:
        """Return sums, the mean ratio, and its interval by the normal approximation."""
        mean = self._sum / self.num_pairs
        low = high = None
        if self.num_pairs > 1:
            spread = max(0.0, self._sum_squared - self.num_pairs * mean * mean)
            error = math.sqrt(spread / (self.num_pairs - 1) / self.num_pairs)
            low, high = math.exp(mean - 1.96 * error), math.exp(mean + 1.96 * error)
        return {
            "variant_tokens": self.variant_tokens,
            "full_tokens": self.full_tokens,
            "ratio": math.exp(mean),
            "ratio_low": low,
            "ratio_high": high,
        }


@dataclass(slots=True)
class Pairs:
    """All pairs of one variant, as it is loaded now."""

    digest: str
    lengths: LengthRatio = field(default_factory=LengthRatio)
    checks: dict[str, PairedCheck] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return what they say, as plain data."""
        return {
            "pairs": self.lengths.num_pairs,
            "confidence": CONFIDENCE,
            "length": self.lengths.as_json(),
            "checks": {name: check.as_json() for name, check in sorted(self.checks.items())},
        }
