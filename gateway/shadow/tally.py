"""The books of the shadow: every candidate is scored, dropped for a reason, or under way."""

from collections import Counter
from typing import Any, Literal

from gateway.registry import Metrics

DropReason = Literal[
    "private",
    "unsupported",
    "unfinished",
    "no_capture",
    "empty",
    "too_long",
    "rows",
    "budget",
    "queue_full",
    "busy",
    "timeout",
    "reference",
    "error",
    "stopped",
]


class Tally:
    """Counts the candidates of all models."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._candidates: Counter[str] = Counter()
        self._scored: Counter[str] = Counter()
        self._dropped: Counter[tuple[str, DropReason]] = Counter()
        self._in_flight: Counter[str] = Counter()

    def begin(self, model: str) -> None:
        """Count a candidate."""
        self._candidates[model] += 1
        self._metrics.counters["shadow_candidates_total"].labels(model).inc()
        self._move(model, 1)

    def score(self, model: str) -> None:
        """Count the end of a candidate that was scored."""
        self._scored[model] += 1
        self._metrics.counters["shadow_scored_total"].labels(model).inc()
        self._move(model, -1)

    def drop(self, model: str, reason: DropReason) -> None:
        """Count the end of one that was not."""
        self._dropped[model, reason] += 1
        self._metrics.counters["shadow_dropped_total"].labels(model, reason).inc()
        self._move(model, -1)

    def num_scored(self, model: str) -> int:
        """Return how many requests of a model were scored."""
        return self._scored[model]

    def of(self, model: str) -> dict[str, Any]:
        """Return a model's counts as plain data."""
        dropped = {
            reason: count for (name, reason), count in self._dropped.items() if name == model
        }
        return {
            "candidates": self._candidates[model],
            "scored": self._scored[model],
            "dropped": dropped,
            "in_flight": self._in_flight[model],
        }

    def _move(self, model: str, count: int) -> None:
        self._in_flight[model] += count
        self._metrics.gauges["shadow_in_flight"].labels(model).set(self._in_flight[model])
