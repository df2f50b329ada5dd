"""The live registry of the gateway's own families, and how a registry becomes text."""

import math
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import product
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.metrics.family import OTHER
from gateway.metrics.own import FAMILIES, PREFIX, Family, RejectionReason

_MOST_BEGUN = 16
_ALL_TRAFFIC = "all"
_USUAL_OPERATIONS = ("chat", "completion")
_BEFORE_AN_ENGINE = tuple((each, "error") for each in ("rejected", "timeout", "shed", "error"))
_ENDINGS = (
    *(("ok", finish) for finish in ("stop", "length", "tool_calls")),
    ("client_abort", "abort"),
    *_BEFORE_AN_ENGINE,
)
"""Outcomes of requests, and how their answers end then."""


class Metrics:
    """Records into a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counters = {
            family.name: Counter(
                PREFIX + family.name, family.help, family.label_names, registry=self.registry
            )
            for family in _of("counter")
        }
        self.gauges = {
            family.name: Gauge(
                PREFIX + family.name, family.help, family.label_names, registry=self.registry
            )
            for family in _of("gauge")
        }
        self.histograms = {
            family.name: Histogram(
                PREFIX + family.name,
                family.help,
                family.label_names,
                registry=self.registry,
                buckets=family.buckets,
            )
            for family in _of("histogram")
        }
        ProcessCollector(registry=self.registry)
        self.gauges["build_info"].labels(version("narrowgate")).set(1)

    def begin(self, model: str, variant: str) -> None:
        """Let series of a variant begin at 0: the first event of a series is no rise otherwise.

        Prometheus sees a rise between two samples only. Families of many combinations begin with
        those that are usual; slices are left to begin with what happens, but for all traffic.
        """
        given = {
            "model": (model,),
            "variant": (variant,),
            "recipe": (variant,),
            "slice": (_ALL_TRAFFIC,),
        }
        for family in FAMILIES:
            values = [given.get(label.name, label.values) for label in family.labels]
            if family.type == "gauge" or not values or math.prod(map(len, values)) > _MOST_BEGUN:
                continue
            kind = self.counters if family.type == "counter" else self.histograms
            for each in product(*values):
                kind[family.name].labels(*each)
        self._begin_requests(model, variant, _ENDINGS)
        self._begin_requests(model, OTHER, _BEFORE_AN_ENGINE)

    def begin_key(self, key: str) -> None:
        """Let what is counted of a key begin at 0."""
        for name in ("key_requests_total", "key_tokens_total"):
            self.counters[name].labels(key)

    def begin_doors(self) -> None:
        """Let what is turned away before its model is known begin at 0."""
        for reason in get_args(RejectionReason):
            self.counters["admission_rejections_total"].labels(OTHER, reason)
        self._begin_requests(OTHER, OTHER, _BEFORE_AN_ENGINE)

    def _begin_requests(self, model: str, variant: str, endings: Sequence[tuple[str, str]]) -> None:
        for operation, ending in product(_USUAL_OPERATIONS, endings):
            self.counters["requests_total"].labels(model, variant, operation, *ending)


def _of(kind: str) -> Iterator[Family]:
    return (family for family in FAMILIES if family.type == kind)


def render(collector: Collector, accept: str) -> tuple[bytes, str]:
    """Return the exposition of a collector and its content type for an ``Accept`` header."""
    encode, content_type = _encoder(accept)
    return encode(WithoutCreated(collector)), content_type


def _encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        return choose_encoder("")


class WithoutCreated(Collector):
    """A collector less its ``_created`` samples, which double the series and help nobody.

    The library's own switch is global to the process, so other registries would feel it.
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric
