"""Which requests are scored: a draw by the request's id, and a budget shared between slices."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

OPT_OUT_HEADER = "x-narrowgate-shadow"

_SCALE = 2.0**64
_KEPT_BACK = 0.5
"""The part of the budget's burst that only slices get which had less than their share."""


def is_drawn(request_id: str, rate: float, secret: bytes) -> bool:
    """Return whether a request is drawn; the secret keeps clients from choosing."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8, key=secret).digest()
    return int.from_bytes(digest) < rate * _SCALE


def is_private(fields: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    """Return whether the client said that nobody shall look; any word but ``on`` says so."""
    is_off = headers.get(OPT_OUT_HEADER, "on").strip().lower() != "on"
    return is_off or fields.get("store") is False


def is_scorable(fields: Mapping[str, Any]) -> bool:
    """Return whether a request has one answer, generated behind its whole prompt."""
    if (fields.get("n") or 1) != 1 or (fields.get("best_of") or 1) != 1:
        return False
    if fields.get("echo") or fields.get("suffix") or fields.get("max_tokens") == 0:
        return False
    prompt = fields.get("prompt")
    return not isinstance(prompt, list) or len(prompt) == 1 or isinstance(prompt[0], int)


class TokenBucket:
    """Tokens that may be spent, refilled over time; the caller brings the clock.

    A level below 0 is owed.
    """

    def __init__(self, burst: float) -> None:
        self.level = burst
        self._burst = burst
        self._at: float | None = None

    def refill(self, rate: float, now: float) -> None:
        """Add what ``rate`` tokens a second gave since the last call."""
        if self._at is not None:
            self.level = min(self._burst, self.level + rate * (now - self._at))
        self._at = now

    def spend(self, count: float) -> float:
        """Take tokens, at most all that are there; return how many those were."""
        spent = min(count, max(0.0, self.level))
        self.level -= spent
        return spent


@dataclass(frozen=True, slots=True)
class Spent:
    """What one reading was admitted for, bucket by bucket."""

    parts: tuple[tuple[TokenBucket, float], ...]


class Budget:
    """Tokens a second that may be scored; rare slices get their share, whatever is frequent.

    Each value of a dimension has a bucket with an equal share of the rate. A request whose slices
    have all had their share may only spend what nobody keeps: the upper half of the whole budget.
    """

    def __init__(self, tokens_per_second: float, burst: float) -> None:
        self._rate = tokens_per_second
        self._burst = burst
        self._all = TokenBucket(burst)
        self._dimensions: dict[str, dict[str, TokenBucket]] = {}

    def spend(self, slices: Collection[str], count: int, now: float) -> Spent | None:
        """Spend ``count`` tokens for a request; None, and nothing spent, if it is not scored.

        ``slices`` are ``dimension:value``; one without a value is all traffic and says nothing.
        """
        self._all.refill(self._rate, now)
        buckets = [bucket for name in slices for bucket in self._bucket(name, now)]
        is_rare = any(bucket.level >= count for bucket in buckets)
        kept_back = 0.0 if is_rare or not buckets else _KEPT_BACK * self._burst
        if self._all.level < count + min(kept_back, self._burst - count):
            return None
        return Spent(tuple((bucket, bucket.spend(count)) for bucket in (self._all, *buckets)))

    def give_back(self, spent: Spent) -> None:
        """Return what was spent for a reading that never began."""
        for bucket, count in spent.parts:
            bucket.level += count  # what is above the burst goes when it is refilled

    def charge(self, count: int, now: float) -> None:
        """Take tokens for what is read beside; what is not there is owed, and nothing admitted."""
        self._all.refill(self._rate, now)
        self._all.level -= count

    def _bucket(self, name: str, now: float) -> list[TokenBucket]:
        """Return a slice's bucket, refilled; none where its dimension has no other value yet."""
        dimension, _, value = name.partition(":")
        if not value:
            return []
        found = self._dimensions.setdefault(dimension, {})
        bucket = found.setdefault(value, TokenBucket(self._burst))
        bucket.refill(self._rate / len(found), now)
        return [bucket] if len(found) > 1 else []
