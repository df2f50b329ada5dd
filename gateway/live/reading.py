"""The few families of the registry that the page shows, read in one pass."""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

from gateway.live.rates import Bounds, Totals
from gateway.metrics.family import FIRST_TOKEN_S, INTER_TOKEN_S
from gateway.registry import Metrics

BOUNDS = Bounds((*FIRST_TOKEN_S, math.inf), (*INTER_TOKEN_S, math.inf))

ERRORS = frozenset({"error", "timeout", "shed"})
"""Outcomes that a client is not to blame for."""

Name = tuple[str, str]
"""Model and variant."""


@dataclass(frozen=True, slots=True)
class Reading:
    """All counts at one moment, by model and variant."""

    totals: Mapping[Name, Totals]
    running: Mapping[Name, float]
    waiting: Mapping[str, float] = field(default_factory=dict)
    """By model."""


def read(metrics: Metrics) -> Reading:
    """Return what the registry says now."""
    counters, histograms = metrics.counters, metrics.histograms
    requests, errors = _requests(counters["requests_total"])
    prompt = _by_name(counters["prompt_tokens_total"], "_total")
    generated = _by_name(counters["generated_tokens_total"], "_total")
    first = _buckets(histograms["time_to_first_token_seconds"])
    inter = _buckets(histograms["inter_token_latency_seconds"])
    names = requests.keys() | first.keys()
    return Reading(
        totals={
            name: Totals(
                requests=requests.get(name, 0.0),
                errors=errors.get(name, 0.0),
                prompt_tokens=prompt.get(name, 0.0),
                generated_tokens=generated.get(name, 0.0),
                first_token=tuple(first.get(name, ())),
                inter_token=tuple(inter.get(name, ())),
            )
            for name in names
        },
        running=_by_name(metrics.gauges["requests_running"], ""),
        waiting={
            sample.labels["model"]: sample.value
            for family in metrics.gauges["requests_waiting"].collect()
            for sample in family.samples
        },
    )


def _requests(counter: MetricWrapperBase) -> tuple[dict[Name, float], dict[Name, float]]:
    """Return all requests that ended, and those that ended in errors of ours."""
    ended: dict[Name, float] = defaultdict(float)
    failed: dict[Name, float] = defaultdict(float)
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                name = (sample.labels["model"], sample.labels["variant"])
                ended[name] += sample.value
                if sample.labels["outcome"] in ERRORS:
                    failed[name] += sample.value
    return ended, failed


def _by_name(metric: MetricWrapperBase, ending: str) -> dict[Name, float]:
    return {
        (sample.labels["model"], sample.labels["variant"]): sample.value
        for family in metric.collect()
        for sample in family.samples
        if sample.name.endswith(ending) and not sample.name.endswith("_created")
    }


def _buckets(histogram: Histogram) -> dict[Name, list[float]]:
    found: dict[Name, list[float]] = defaultdict(list)
    for family in histogram.collect():
        for sample in family.samples:
            if sample.name.endswith("_bucket"):  # they come in the order of their bounds
                found[sample.labels["model"], sample.labels["variant"]].append(sample.value)
    return found
