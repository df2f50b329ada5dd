"""What the fake engine says of itself to Prometheus: every series of an embedded engine."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.metrics.engine import ENGINE_FAMILIES, ENGINE_PREFIX

CACHE_PAGES = 100


class FakeMetrics:
    """Follows the fake engine's answers; an answer holds ten pages of its cache."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._registry = CollectorRegistry()
        labels = {each.name: ("model", *(x.name for x in each.labels)) for each in ENGINE_FAMILIES}
        self._counters = {
            each.name: Counter(
                ENGINE_PREFIX + each.name, each.help, labels[each.name], registry=self._registry
            )
            for each in ENGINE_FAMILIES
            if each.type == "counter"
        }
        self._gauges = {
            each.name: Gauge(
                ENGINE_PREFIX + each.name, each.help, labels[each.name], registry=self._registry
            )
            for each in ENGINE_FAMILIES
            if each.type == "gauge"
        }
        self._histograms = {
            each.name: Histogram(
                ENGINE_PREFIX + each.name,
                each.help,
                labels[each.name],
                registry=self._registry,
                buckets=each.buckets,
            )
            for each in ENGINE_FAMILIES
            if each.type == "histogram"
        }
        self._gauges["kv_cache_pages"].labels(name).set(CACHE_PAGES)
        for unlabelled in ("prefix_cache_queries_total", "prefix_cache_hits_total"):
            self._counters[unlabelled].labels(name)
        self._counters["preemptions_total"].labels(name)
        self._gauges["sequences_waiting"].labels(name).set(0)
        self._gauges["last_token_timestamp_seconds"].labels(name).set(0)
        self.running(0)

    def running(self, count: int) -> None:
        """Note how many answers are under way."""
        self._gauges["sequences_running"].labels(self._name).set(count)
        usage = min(1.0, 10 * count / CACHE_PAGES)
        self._gauges["kv_cache_usage_ratio"].labels(self._name).set(usage)

    def token(self, seconds: float, *, is_first: bool) -> None:
        """Note one token and what its step took."""
        name = "time_to_first_token_seconds" if is_first else "inter_token_latency_seconds"
        self._histograms[name].labels(self._name).observe(seconds)
        self._histograms["step_seconds"].labels(self._name).observe(seconds)
        self._histograms["step_tokens"].labels(self._name).observe(1)
        self._counters["generated_tokens_total"].labels(self._name).inc()
        self._gauges["last_token_timestamp_seconds"].labels(self._name).set(time.time())

    def ended(self, reason: str, num_prompt: int, seconds: float) -> None:
        """Note the end of an answer; half of its prompt was known."""
        self._counters["sequences_total"].labels(self._name, reason).inc()
        self._counters["prompt_tokens_total"].labels(self._name).inc(num_prompt)
        self._counters["prefix_cache_queries_total"].labels(self._name).inc(num_prompt)
        self._counters["prefix_cache_hits_total"].labels(self._name).inc(num_prompt / 2)
        self._histograms["queue_seconds"].labels(self._name).observe(0.001)
        self._histograms["sequence_seconds"].labels(self._name).observe(seconds)

    def render(self) -> bytes:
        """Return the exposition."""
        return generate_latest(self._registry)
