"""What the engine says of itself to Prometheus: one table of the manifest, two views of it.

Under its own names on ``/metrics``; on ``/metrics/vllm`` under the names of vLLM (its
``vllm/v1/metrics/loggers.py``), which dashboards, autoscalers and inference gateways read.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.engine.scheduler import Scheduler, Work
from gateway.engine.sequence import Sequence, SequenceTimes, SpanSink
from gateway.metrics.engine import (
    CACHE_USAGE,
    DURATION,
    ENDED,
    ENGINE_FAMILIES,
    ENGINE_PREFIX,
    FIRST_TOKEN,
    GENERATED,
    INTER_TOKEN,
    LAST_TOKEN,
    PAGES,
    PREEMPTIONS,
    PREFIX_HITS,
    PREFIX_QUERIES,
    PROMPT,
    QUEUE,
    RUNNING,
    STEP,
    STEP_TOKENS,
    WAITING,
    EngineFamily,
)
from gateway.registry import render

View = Literal["own", "vllm"]


class EngineMetrics:
    """Follows every sequence; recorded on the step thread, rendered on any."""

    def __init__(self, scheduler: Scheduler, *, model: str, spans: SpanSink | None = None) -> None:
        self._model = model
        self.spans = spans
        self._registry = CollectorRegistry()
        self._times: dict[Sequence, SequenceTimes] = {}
        self._registry.register(_SchedulerView(scheduler))
        self._prompt, self._generated = (self._counter(each) for each in (PROMPT, GENERATED))
        self._ended = self._counter(ENDED)
        self._queue, self._first_token, self._inter_token, self._duration = (
            self._histogram(each) for each in (QUEUE, FIRST_TOKEN, INTER_TOKEN, DURATION)
        )
        self._last_token = Gauge(LAST_TOKEN.name, LAST_TOKEN.help, registry=self._registry)
        self._step, self._step_tokens = (self._histogram(each) for each in (STEP, STEP_TOKENS))

    def arrived(self, sequence: Sequence) -> None:
        """Begin to follow a sequence."""
        self._times[sequence] = SequenceTimes(time.monotonic())

    def scheduled(self, work: Iterable[Work]) -> None:
        """Note which sequences got their first step."""
        now = time.monotonic()
        for item in work:
            times = self._times.get(item.sequence)
            if times is not None and times.scheduled is None:
                times.scheduled = now
                self._queue.observe(now - times.arrived)

    def stepped(self, work: Iterable[Work], seconds: float) -> None:
        """Note a finished step: every item that samples has one token more."""
        now = time.monotonic()
        tokens = sampled = 0
        for item in work:
            tokens += len(item.token_ids)
            times = self._times.get(item.sequence)
            if not item.samples or times is None:
                continue
            sampled += 1
            if times.last_token is None:
                times.first_token = now
                self._first_token.observe(now - times.arrived)
            else:
                self._inter_token.observe(now - times.last_token)
            times.last_token = now
        if sampled:
            self._last_token.set(time.time())
        self._generated.inc(sampled)
        self._step.observe(seconds)
        self._step_tokens.observe(tokens)

    def ended(self, sequence: Sequence, reason: str) -> None:
        """Stop following a sequence; ``reason`` is its finish reason, ``abort`` or ``error``."""
        times = self._times.pop(sequence, None)
        if times is None:
            return
        self._prompt.inc(len(sequence.prompt_ids))
        self._duration.observe(time.monotonic() - times.arrived)
        self._ended.labels(finished_reason=reason).inc()
        if self.spans is not None:
            self.spans.ended(sequence, times, reason)

    def render(self, accept: str, view: View) -> tuple[bytes, str]:
        """Return the exposition and its content type for an ``Accept`` header."""
        labels = {"model": self._model}
        if view == "vllm":
            labels = {"model_name": self._model, "engine": "0"}
        return render(_Named(self._registry, _names(view), labels), accept)

    def _counter(self, series: EngineFamily) -> Counter:
        names = tuple(label.name for label in series.labels)
        return Counter(series.name, series.help, names, registry=self._registry)

    def _histogram(self, series: EngineFamily) -> Histogram:
        return Histogram(series.name, series.help, registry=self._registry, buckets=series.buckets)


class _SchedulerView(Collector):
    """What the scheduler holds at the moment of a scrape."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        scheduler = self._scheduler
        pages = scheduler.pages
        gauges = {
            RUNNING: scheduler.num_running,
            WAITING: scheduler.num_waiting,
            CACHE_USAGE: scheduler.num_held_pages / pages.sizes.total,
            PAGES: pages.sizes.total,
        }
        for series, value in gauges.items():
            yield GaugeMetricFamily(series.name, series.help, value)
        counters = {
            PREFIX_QUERIES: scheduler.counts.prompt_tokens,
            PREFIX_HITS: scheduler.counts.shared_tokens,
            PREEMPTIONS: scheduler.counts.preemptions,
        }
        for series, value in counters.items():
            yield CounterMetricFamily(series.name, series.help, value)


class _Named(Collector):
    """The registry's families under other names, with constant labels; others are left out."""

    def __init__(
        self, registry: Collector, names: Mapping[str, str], labels: Mapping[str, str]
    ) -> None:
        self._registry = registry
        self._names = names
        self._labels = labels

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            name = self._names.get(metric.name)
            if name is None:
                continue
            seen = Metric(name, metric.documentation, metric.type)
            for sample in metric.samples:
                suffix = sample.name.removeprefix(metric.name)
                seen.add_sample(name + suffix, {**self._labels, **sample.labels}, sample.value)
            yield seen


def _names(view: View) -> dict[str, str]:
    """Return the name of each family in a view by its own; those of counters go without _total."""
    found = {}
    for series in ENGINE_FAMILIES:
        name = ENGINE_PREFIX + series.name if view == "own" else f"vllm:{series.vllm}"
        if view == "vllm" and series.vllm is None:
            continue
        # vLLM has a histogram whose name ends in _total too.
        ending = "_total" if series.name.endswith("_total") else ""
        found[series.name.removesuffix(ending)] = name.removesuffix(ending)
    return found
