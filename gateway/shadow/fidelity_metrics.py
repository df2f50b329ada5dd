"""Scored requests and checked answers as metrics: sums and counts, from which means follow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from gateway.registry import Metrics
from gateway.shadow.divergence import Divergence
from gateway.shadow.scored import ScoredRequest


@dataclass(frozen=True, slots=True)
class _Sums:
    """Some positions of an answer together; ``kl`` to ``delta`` in nats."""

    count: int
    kl: float
    bound: float
    cost: float
    delta: float
    agreed: int

    @classmethod
    def of(cls, found: Divergence, places: range) -> Self:
        """Return the sums over some positions."""
        part = slice(places.start, places.stop, places.step)
        return cls(
            count=len(places),
            kl=math.fsum(found.kl[part]),
            bound=math.fsum(found.bound[part]),
            cost=math.fsum(found.nll[part]),
            delta=math.fsum(found.nll_delta[part]),
            agreed=sum(found.agrees[part]),
        )


class FidelityMetrics:
    """Counts scored requests, slice by slice."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def take(self, record: ScoredRequest) -> None:
        """Count one request."""
        names = (record.model, record.variant)
        found = record.divergence
        histograms = self._metrics.histograms
        per_token = histograms["fidelity_token_kl_divergence_nats"]
        per_token.labels(*names, record.estimator).observe(
            found.mean_kl, {"trace_id": record.trace_id} if record.trace_id else None
        )
        delta = math.fsum(found.nll_delta) / len(found.nll_delta)
        histograms["fidelity_nll_delta_nats"].labels(*names).observe(delta)
        if (first := found.first_divergence) is not None:
            histograms["fidelity_first_divergence_tokens"].labels(*names).observe(first + 1)
        sums: dict[range, _Sums] = {}  # most slices have all of the answer
        for name, places in record.slices.items():
            if places:
                if places not in sums:
                    sums[places] = _Sums.of(found, places)
                self._count_slice(record, name, sums[places])

    def count_checks(self, model: str, variant: str, results: Mapping[str, bool]) -> None:
        """Count the checks of one answer."""
        checks = self._metrics.counters["fidelity_output_checks_total"]
        for name, is_passed in results.items():
            checks.labels(model, variant, name, "ok" if is_passed else "failed").inc()

    def _count_slice(self, record: ScoredRequest, name: str, sums: _Sums) -> None:
        labels = (record.model, record.variant, name)
        counters = self._metrics.counters
        kl = sums.kl / sums.count
        counters["fidelity_requests_total"].labels(*labels).inc()
        counters["fidelity_kl_nats_total"].labels(*labels, record.estimator).inc(kl)
        if record.estimator == "exact":
            bounds = counters["fidelity_kl_bound_nats_total"]
            bounds.labels(*labels).inc(sums.bound / sums.count)
        squared = counters["fidelity_kl_nats_squared_total"]
        squared.labels(*labels, record.estimator).inc(kl * kl)
        costs = counters["fidelity_nll_nats_total"]
        costs.labels(*labels, "variant").inc(sums.cost)
        costs.labels(*labels, "full").inc(max(0.0, sums.cost + sums.delta))
        tokens = counters["fidelity_tokens_total"]
        tokens.labels(*labels, "true").inc(sums.agreed)
        tokens.labels(*labels, "false").inc(sums.count - sums.agreed)
