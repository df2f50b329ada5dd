"""Every metric of the gateway: one table of families, and the object that records into them."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

OTHER = "_other"
"""The label value of everything outside its closed set, such as unknown model names."""

RestartReason = Literal["exit", "stall"]

RejectionReason = Literal[
    "host",
    "invalid_key",
    "admin_only",
    "model_not_allowed",
    "request_rate",
    "token_rate",
    "queue_full",
    "queue_timeout",
    "process_full",
]

DURATION_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640),
)
FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 20, 40, 80, 160),
)
INTER_TOKEN_S = (
    *(0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10),
)
_QUEUE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_LOAD_S = (0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640, 1280)


_LAG_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_KL_NATS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3, 10)
_NLL_NATS = (-1, -0.3, -0.1, -0.03, -0.01, 0, 0.01, 0.03, 0.1, 0.3, 1, 3)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Family(NamedTuple):
    """One row of the table; the name goes without the prefix ``narrowgate_``."""

    type: Literal["counter", "gauge", "histogram"]
    name: str
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


# fmt: off
FAMILIES: tuple[Family, ...] = (
    Family("histogram", "request_duration_seconds", ("model", "variant", "operation", "outcome"),
           "Time from the request's arrival to the end of its reply.", DURATION_S),
    Family("histogram", "time_to_first_token_seconds", ("model", "variant"),
           "Time from a streamed request's arrival to its first text.", FIRST_TOKEN_S),
    Family("histogram", "inter_token_latency_seconds", ("model", "variant"),
           "Time between two streamed events with text, usually one token each.", INTER_TOKEN_S),
    Family("counter", "requests_total",
           ("model", "variant", "operation", "outcome", "finish_reason"),
           "Requests that ended, whatever their outcome."),
    Family("counter", "request_errors_total", ("model", "error_type", "status_class"),
           "Requests that ended in an error, also after the stream began."),
    Family("counter", "prompt_tokens_total", ("model", "variant"),
           "Prompt tokens, as counted by the engine; requests without a usage report add none."),
    Family("counter", "generated_tokens_total", ("model", "variant"),
           "Generated tokens, as counted by the engine; of a stream that broke off, its events."),
    Family("gauge", "requests_running", ("model", "variant"),
           "Requests passed to an engine: running or waiting there."),
    Family("gauge", "requests_waiting", ("model",),
           "Requests that wait here for their turn at the model's engine."),
    Family("histogram", "queue_seconds", ("model",),
           "Time that requests waited here for their turn, those that had to.", _QUEUE_S),
    Family("counter", "admission_rejections_total", ("model", "reason"),
           "Requests that were turned away before they reached an engine."),
    Family("counter", "key_requests_total", ("key",),
           "Requests let in, by the name of their key."),
    Family("counter", "key_tokens_total", ("key",),
           "Tokens of prompts and answers, by the name of their key."),
    Family("counter", "rate_store_failures_total", (),
           "Times that the shared store of rate limits failed and this process counted alone."),
    Family("counter", "client_disconnects_total", ("model", "phase"),
           "Clients that left before the reply had ended."),
    Family("gauge", "model_info",
           ("model", "variant", "recipe", "recipe_digest", "source_digest", "weight_bits",
            "base_dtype", "backend", "numerics", "kernels", "kv_dtype"),
           "What is served, always 1; joins other series."),
    Family("gauge", "weights_bytes", ("model", "variant", "recipe"),
           "Bytes of the live weights in memory."),
    Family("gauge", "weights_uncompressed_bytes", ("model", "variant", "recipe"),
           "Bytes of the full model's weights."),
    Family("gauge", "kv_bytes_per_token", ("model", "variant", "recipe"),
           "Bytes that one token takes in the live cache of keys and values."),
    Family("gauge", "engine_up", ("model", "variant"),
           "1 while the engine is ready, else 0."),
    Family("gauge", "model_state", ("model", "variant", "state"),
           "1 for the state that the model is in, 0 for every other state."),
    Family("gauge", "active_variant", ("model", "variant"),
           "1 for the variant that serves the model's plain name, 0 for the others."),
    Family("gauge", "replicas_ready", ("model", "variant"),
           "Engines of the variant that are ready."),
    Family("gauge", "reserved_memory_bytes", ("model", "variant"),
           "Memory that the variant's engines hold, or that was set aside for them if more."),
    Family("gauge", "memory_budget_bytes", (),
           "What all engines together may hold, if there is a budget."),
    Family("counter", "evictions_total", ("model", "variant", "reason"),
           "Variants that were stopped, to make room (memory) or after their time (idle)."),
    Family("counter", "variant_swaps_total", ("model", "result"),
           "Changes of the active variant."),
    Family("counter", "request_retries_total", ("model", "variant"),
           "Attempts at another engine after this variant's engine had failed a request."),
    Family("gauge", "build_info", ("version",),
           "The version of this gateway, always 1."),
    Family("counter", "engine_restarts_total", ("model", "variant", "reason"),
           "Restarts of an engine that ended or stalled."),
    Family("histogram", "model_load_seconds", ("model", "recipe"),
           "Time to prepare a model and to start its engine.", _LOAD_S),
    Family("counter", "shadow_candidates_total", ("model",),
           "Requests drawn to be scored; each is scored, dropped for a reason, or under way."),
    Family("counter", "shadow_scored_total", ("model",),
           "Candidates that the reference has scored."),
    Family("counter", "shadow_dropped_total", ("model", "reason"),
           "Candidates that were not scored, and why."),
    Family("gauge", "shadow_in_flight", ("model",),
           "Candidates under way."),
    Family("gauge", "shadow_queue_length", (),
           "Captured replies that wait for the reference."),
    Family("histogram", "shadow_lag_seconds", ("model",),
           "Time from the capture of a reply to its score.", _LAG_S),
    Family("counter", "shadow_reference_tokens_total", ("model",),
           "Tokens that references read."),
    Family("counter", "shadow_cpu_seconds_total", ("model",),
           "Processor time of references on this machine."),
    Family("counter", "shadow_yields_total", ("model",),
           "Scorings that were broken off because requests came."),
    Family("gauge", "shadow_reference_up", ("model",),
           "1 while the reference takes texts, else 0."),
    Family("counter", "shadow_reference_failures_total", ("model",),
           "Starts and scorings that failed."),
    Family("histogram", "fidelity_token_kl_divergence_nats", ("model", "variant", "estimator"),
           "KL divergence of the full model from the variant, mean of a request's tokens; variant "
           "full is the noise floor.", _KL_NATS),
    Family("histogram", "fidelity_nll_delta_nats", ("model", "variant"),
           "How much less likely the full model finds the served tokens, mean of a request.",
           _NLL_NATS),
    Family("histogram", "fidelity_first_divergence_tokens", ("model", "variant"),
           "Token of an answer at which the likeliest tokens first differ, those where they do.",
           _TOKENS),
    Family("counter", "fidelity_tokens_total", ("model", "variant", "slice", "agree"),
           "Scored tokens, by whether both models find the same one the likeliest."),
    Family("counter", "fidelity_requests_total", ("model", "variant", "slice"),
           "Scored requests with tokens in the slice."),
    Family("counter", "fidelity_kl_nats_total", ("model", "variant", "slice", "estimator"),
           "Sum of the requests' mean KL divergences."),
    Family("counter", "fidelity_kl_nats_squared_total",
           ("model", "variant", "slice", "estimator"),
           "Sum of their squares, for intervals."),
    Family("counter", "fidelity_nll_nats_total", ("model", "variant", "slice", "side"),
           "What the served tokens cost the variant and the full model, minus log-probability."),
    Family("counter", "fidelity_output_checks_total", ("model", "variant", "check", "result"),
           "Checks of drawn answers alone: their form, and signs of a broken model."),
    Family("gauge", "drift_state", ("model", "variant", "slice"),
           "The verdict: 0 learning, 1 ok, 2 drift, 3 stale."),
    Family("gauge", "drift_e_value_log10", ("model", "variant", "slice"),
           "Logarithm of the evidence that the divergence rose above the tolerance."),
    Family("gauge", "drift_mean_lower_nats", ("model", "variant", "slice"),
           "Lower bound of the mean KL divergence, valid at all times."),
    Family("gauge", "drift_mean_upper_nats", ("model", "variant", "slice"),
           "Upper bound of the mean KL divergence, valid at all times."),
    Family("gauge", "drift_tolerance_nats", ("model", "variant", "slice"),
           "Mean KL divergence up to which the slice counts as undamaged."),
    Family("counter", "verdict_changes_total", ("model", "variant", "slice", "state"),
           "Changes of a verdict, by what it became."),
    Family("counter", "ladder_steps_total", ("model", "from", "to", "reason"),
           "Steps on a model's ladder that were done, and why."),
    Family("counter", "probes_total", ("model", "variant", "result"),
           "One-token probes of fixed prompts."),
    Family("gauge", "probe_change_nats", ("model", "variant"),
           "Largest change of a probed log-probability since the engine became ready."),
)
# fmt: on


class Metrics:
    """Records into a registry of its own and renders it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.counters = {
            family.name: Counter(_full(family), family.help, family.labels, registry=self.registry)
            for family in FAMILIES
            if family.type == "counter"
        }
        self.gauges = {
            family.name: Gauge(_full(family), family.help, family.labels, registry=self.registry)
            for family in FAMILIES
            if family.type == "gauge"
        }
        self.histograms = {
            family.name: Histogram(
                _full(family),
                family.help,
                family.labels,
                registry=self.registry,
                buckets=family.buckets,
            )
            for family in FAMILIES
            if family.type == "histogram"
        }
        ProcessCollector(registry=self.registry)
        self.gauges["build_info"].labels(version("narrowgate")).set(1)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type for an ``Accept`` header."""
        encode, content_type = encoder(accept)
        return encode(WithoutCreated(self.registry)), content_type


def encoder(accept: str) -> tuple[Callable[[Any], bytes], str]:
    """Return what renders a registry for an ``Accept`` header, and the content type."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no number
        return choose_encoder("")


class WithoutCreated(Collector):
    """The registry less its ``_created`` samples, which double the series and help nobody.

    The library's own switch is global to the process, so other registries would feel it.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric


def _full(family: Family) -> str:
    return f"narrowgate_{family.name}"
