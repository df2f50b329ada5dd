"""The gateway: who asks, what is answered, what is turned away, what the process needs."""

from grafana import units
from grafana.charts import lines, tile
from grafana.dashboard import Dashboard, Row
from grafana.panel import Panel, Query
from grafana.query import gateways_own, quantile, rate, recent, total

NO_TRAFFIC = "No traffic"
NO_KEYS = "No keys are set, or no traffic"
_MV = "model, variant"


def _requests() -> tuple[Panel, ...]:
    return (
        lines(
            "Requests",
            "Requests that ended each second, by what became of them (narrowgate_requests_total); "
            "other operations than chat and completion are drawn from their second on. shed and "
            "rejected are answers to too much; error and timeout are faults.",
            units.REQUESTS_PER_SECOND,
            NO_TRAFFIC,
            Query(rate("requests_total", "outcome"), "{{outcome}}"),
            stacked=True,
        ),
        lines(
            "Errors by code",
            "Errors lately, by the code that clients see (narrowgate_request_errors_total). "
            "The README's table of errors says what each means and who can mend it.",
            units.COUNT,
            "No errors",
            Query(
                recent("request_errors_total", "error_type, status_class"),
                "{{error_type}} {{status_class}}",
            ),
            stacked=True,
        ),
        lines(
            "Duration",
            "From a request's arrival to the end of its reply, median and 95th percentile "
            "(narrowgate_request_duration_seconds). It grows with the answers; compare lengths "
            "below before you look for a fault.",
            units.SECONDS,
            NO_TRAFFIC,
            *(
                Query(
                    quantile(share, "request_duration_seconds", "operation"), "{{operation}} " + n
                )
                for share, n in ((0.5, "p50"), (0.95, "p95"))
            ),
            dashed=("/p50$/",),
        ),
    )


def _clients() -> tuple[Panel, ...]:
    return (
        lines(
            "Clients that left",
            "Connections closed before the reply had ended, each second, by phase "
            "(narrowgate_client_disconnects_total). prefill: the first token came too late for "
            "them.",
            units.REQUESTS_PER_SECOND,
            "Nobody left",
            Query(rate("client_disconnects_total", "phase"), "{{phase}}"),
        ),
        lines(
            "Second attempts",
            "Requests tried again at another engine each second "
            "(narrowgate_request_retries_total). Any: an engine fails before its first byte; see "
            "restarts on the dashboard Engines.",
            units.EVENTS_PER_SECOND,
            "None was needed",
            Query(rate("request_retries_total", _MV), "{{model}}@{{variant}}"),
        ),
        lines(
            "Lengths",
            "Tokens of prompts and of answers, 95th percentile "
            "(narrowgate_request_prompt_tokens, narrowgate_request_generated_tokens). Longer than "
            "usual explains longer durations and a fuller cache.",
            units.TOKENS,
            NO_TRAFFIC,
            Query(quantile(0.95, "request_prompt_tokens", "model"), "{{model}} prompt"),
            Query(quantile(0.95, "request_generated_tokens", "model"), "{{model}} answer"),
            dashed=("/prompt$/",),
        ),
    )


def _admission() -> tuple[Panel, ...]:
    return (
        lines(
            "Turned away",
            "Requests refused before they reached an engine, each second, by reason "
            "(narrowgate_admission_rejections_total). queue_full, queue_timeout, process_full: "
            "more engines or lower rates; invalid_key, host: somebody's settings.",
            units.REQUESTS_PER_SECOND,
            "Nobody was turned away",
            Query(rate("admission_rejections_total", "reason"), "{{reason}}"),
            width=6,
            stacked=True,
        ),
        lines(
            "Time in the queue",
            "Of requests that had to wait for their turn, median and 95th percentile "
            "(narrowgate_queue_seconds). Near the limit of waiting: the next are turned away.",
            units.SECONDS,
            "Nobody had to wait",
            Query(quantile(0.5, "queue_seconds", "model"), "{{model}} p50"),
            Query(quantile(0.95, "queue_seconds", "model"), "{{model}} p95"),
            width=6,
            dashed=("/p50$/",),
        ),
        lines(
            "Requests by key",
            "Requests let in each second, by the name of their key (narrowgate_key_requests_total"
            "). One key far above the others: give it a rate in the key file.",
            units.REQUESTS_PER_SECOND,
            NO_KEYS,
            Query(rate("key_requests_total", "key"), "{{key}}"),
            width=6,
            stacked=True,
        ),
        lines(
            "Tokens by key",
            "Tokens of prompts and answers each second, by the name of their key "
            "(narrowgate_key_tokens_total). This is what a key's token rate bounds.",
            units.TOKENS_PER_SECOND,
            NO_KEYS,
            Query(rate("key_tokens_total", "key"), "{{key}}"),
            width=6,
            stacked=True,
        ),
    )


def _models() -> tuple[Panel, ...]:
    return (
        lines(
            "Swaps and evictions",
            "Changes of the active variant, and variants stopped to make room or after their time, "
            "lately (narrowgate_variant_swaps_total, narrowgate_evictions_total). A failed swap: "
            "the old variant still serves, and the log says why. memory, often: the models do not "
            "fit together; raise the budget or compress more.",
            units.COUNT,
            "No swap and no eviction",
            Query(recent("variant_swaps_total", "model, result"), "{{model}} swap {{result}}"),
            Query(
                recent("evictions_total", f"{_MV}, reason"),
                "{{model}}@{{variant}} evicted ({{reason}})",
            ),
            width=12,
        ),
        lines(
            "Rate store failures",
            "Times lately that the shared store of rate limits failed and each gateway counted "
            "alone (narrowgate_rate_store_failures_total). Any: limits are looser than set; look "
            "at Redis.",
            units.COUNT,
            "No gateway is scraped",
            Query(recent("rate_store_failures_total", "instance"), "{{instance}}"),
            width=12,
        ),
    )


def _process() -> tuple[Panel, ...]:
    cpu = gateways_own("rate(process_cpu_seconds_total{filters}[$__rate_interval])")
    return (
        tile(
            "Version",
            "Gateways by version (narrowgate_build_info). Two versions: a deployment is under way "
            "or was left half done.",
            units.COUNT,
            "No gateway is scraped",
            Query(total("build_info", "version"), "{{version}}"),
            width=3,
            height=8,
        ),
        lines(
            "Processor",
            "Cores that the gateway process uses, engines not counted in "
            "(process_cpu_seconds_total). Near 1 it is the bottleneck: one process uses one core; "
            "run another beside it.",
            units.CORES,
            "No gateway is scraped",
            Query(cpu, "{{instance}}"),
            width=7,
        ),
        lines(
            "Memory",
            "Resident memory of the gateway process, engines not counted in "
            "(process_resident_memory_bytes). A steady rise over days is a leak: restart it, and "
            "report it.",
            units.BYTES,
            "No gateway is scraped",
            Query(gateways_own("process_resident_memory_bytes{filters}"), "{{instance}}"),
            width=7,
        ),
        lines(
            "Open files",
            "Open files of the gateway process over its limit (process_open_fds, process_max_fds)"
            ". Each client and each engine takes one; near 1: raise the limit of open files.",
            units.SHARE,
            "No gateway is scraped",
            Query(
                gateways_own("process_open_fds{filters} / (process_max_fds{filters} > 0)"),
                "{{instance}}",
            ),
            width=7,
        ),
    )


def dashboard() -> Dashboard:
    """Return the dashboard of the gateway itself."""
    return Dashboard(
        uid="narrowgate-gateway",
        title="Narrowgate / Gateway",
        description="Who asks, what is answered or turned away, and what the process needs.",
        rows=(
            Row("Requests", (*_requests(), *_clients())),
            Row("Admission", _admission()),
            Row("Models and limits", _models()),
            Row("Process", _process()),
        ),
    )
