"""The live registry of the gateway's own families, and how a registry becomes text."""

import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.metrics import FAMILIES, PREFIX, Family

_MOST_BEGUN = 16


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
        """Let counters of a variant begin at 0: the first event of a series is no rise otherwise.

        Prometheus sees a rise between two samples only. Families of many combinations are left to
        begin with what happens.
        """
        given = {"model": (model,), "variant": (variant,), "recipe": (variant,)}
        for family in _of("counter"):
            values = [given.get(label.name, label.values) for label in family.labels]
            if math.prod(map(len, values)) <= _MOST_BEGUN and family.labels:
                for each in product(*values):
                    self.counters[family.name].labels(*each)
        self.histograms["model_load_seconds"].labels(model, variant)


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
