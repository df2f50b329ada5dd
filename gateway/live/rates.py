"""What happened between two readings of the counters: rates and quantiles, pure arithmetic."""

import operator
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_Operation = Callable[[float, float], float]

_MEDIAN, _TAIL = 0.5, 0.95


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the start; those of histograms are cumulative, a count for each bound."""

    requests: float = 0.0
    errors: float = 0.0
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    first_token: tuple[float, ...] = ()
    inter_token: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened within ``seconds``; counts are a second, times in seconds, None of nothing."""

    seconds: float
    requests: float
    errors: float
    prompt_tokens: float
    generated_tokens: float
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    inter_token_p50_s: float | None
    inter_token_p95_s: float | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """The upper bounds of the histograms' buckets in seconds, the last one infinite."""

    first_token: tuple[float, ...]
    inter_token: tuple[float, ...]


def added(parts: Iterable[Totals]) -> Totals:
    """Return the sum of counts."""
    whole = Totals()
    for part in parts:
        whole = _each(operator.add, whole, part)
    return whole


def rates(before: Totals, after: Totals, seconds: float, bounds: Bounds) -> Rates:
    """Return what happened from ``before`` to ``after``."""
    change = _each(operator.sub, after, before)
    per_s = 1.0 / seconds if seconds > 0 else 0.0
    return Rates(
        seconds=seconds,
        requests=change.requests * per_s,
        errors=change.errors * per_s,
        prompt_tokens=change.prompt_tokens * per_s,
        generated_tokens=change.generated_tokens * per_s,
        first_token_p50_s=quantile(_MEDIAN, bounds.first_token, change.first_token),
        first_token_p95_s=quantile(_TAIL, bounds.first_token, change.first_token),
        inter_token_p50_s=quantile(_MEDIAN, bounds.inter_token, change.inter_token),
        inter_token_p95_s=quantile(_TAIL, bounds.inter_token, change.inter_token),
    )


def quantile(q: float, bounds: Sequence[float], counts: Sequence[float]) -> float | None:
    """Return a quantile as Prometheus' ``histogram_quantile`` does; None of no observations.

    ``counts`` are cumulative; within a bucket observations count as spread evenly, and one beyond
    the last finite bound counts as that bound.
    """
    if not counts or counts[-1] <= 0:
        return None
    rank = q * counts[-1]
    place = bisect_left(counts, rank)
    if place >= len(bounds) - 1:
        return bounds[-2]
    start, below = (bounds[place - 1], counts[place - 1]) if place else (0.0, 0.0)
    inside = counts[place] - below
    return start + (bounds[place] - start) * ((rank - below) / inside if inside else 0.0)


def _each(do: _Operation, left: Totals, right: Totals) -> Totals:
    return Totals(
        requests=do(left.requests, right.requests),
        errors=do(left.errors, right.errors),
        prompt_tokens=do(left.prompt_tokens, right.prompt_tokens),
        generated_tokens=do(left.generated_tokens, right.generated_tokens),
        first_token=_columns(do, left.first_token, right.first_token),
        inter_token=_columns(do, left.inter_token, right.inter_token),
    )


def _columns(
    do: _Operation, left: tuple[float, ...], right: tuple[float, ...]
) -> tuple[float, ...]:
    size = max(len(left), len(right))
    padded = [each + (0.0,) * (size - len(each)) for each in (left, right)]
    return tuple(map(do, *padded))
