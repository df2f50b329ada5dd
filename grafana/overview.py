"""The overview: is it fast, does quality hold, does compression pay, is there room."""

from grafana import units
from grafana.charts import lines, tile
from grafana.colours import at_least, at_most, verdicts
from grafana.compression import memory_saved
from grafana.dashboard import Dashboard, Row
from grafana.judgement import worst_active_slice, worst_verdict
from grafana.panel import Panel, Query
from grafana.query import gained, happened, highest, quantile, rate, ratio, total
from grafana.variable import first_token_limit, inter_token_limit

NO_TRAFFIC = "No traffic"
NOT_SCORED = "Nothing scored: is shadow.rate 0?"
ANSWERED = 'outcome!~"rejected|client_abort"'
FAILED = 'outcome=~"error|timeout|shed"'


def _attained(name: str, variable: str) -> str:
    """Return the share of observations within the bucket that a variable names."""
    return ratio(
        gained(f"{name}_bucket", "model", f'le="${variable}"'), gained(f"{name}_count", "model")
    )


def _service() -> tuple[Panel, ...]:
    return (
        tile(
            "First token in time",
            "Share of streams in the time range whose first text came within the chosen limit "
            "(narrowgate_time_to_first_token_seconds). Low: look at waiting requests below, then "
            "at queues and step times on the dashboard Engines.",
            units.SHARE,
            NO_TRAFFIC,
            Query(_attained("time_to_first_token_seconds", "ttft_slo"), "{{model}}"),
            decimals=1,
            thresholds=at_least(0.95, 0.99),
            leads_to="narrowgate-engines",
        ),
        tile(
            "Next token in time",
            "Share of gaps between streamed pieces that kept the chosen limit "
            "(narrowgate_inter_token_latency_seconds). Low: too many sequences a step, or other "
            "programs on the same cores; see the dashboard Engines.",
            units.SHARE,
            NO_TRAFFIC,
            Query(_attained("inter_token_latency_seconds", "itl_slo"), "{{model}}"),
            decimals=1,
            thresholds=at_least(0.95, 0.99),
            leads_to="narrowgate-engines",
        ),
        tile(
            "Failed requests",
            "Share of requests that ended in an error, a timeout or for want of room, of those "
            "that were neither refused nor left by their clients (narrowgate_requests_total). "
            "High: see errors by code on the dashboard Gateway.",
            units.SHARE,
            NO_TRAFFIC,
            Query(
                ratio(
                    f"({happened('requests_total', 'model', FAILED)} or "
                    f"0 * {happened('requests_total', 'model', ANSWERED)})",
                    happened("requests_total", "model", ANSWERED),
                ),
                "{{model}}",
            ),
            decimals=2,
            thresholds=at_most(0.01, 0.05),
            leads_to="narrowgate-gateway",
        ),
    )


def _quality() -> tuple[Panel, ...]:
    return (
        tile(
            "Verdict",
            "Whether the active variant still behaves like the full model, over all its traffic "
            "(narrowgate_drift_state of slice all, narrowgate_active_variant). drift: swap to a "
            "safer variant, then look at the dashboard Fidelity. stale: requests are served and "
            "none is scored; see the dashboard Shadow.",
            units.STATE,
            NOT_SCORED,
            Query(worst_verdict(), "{{model}}@{{variant}}"),
            mappings=(verdicts(),),
            leads_to="narrowgate-fidelity",
        ),
        tile(
            "Worst slice",
            "The slice of an active variant with the largest mean KL divergence for its tolerance "
            "in the time range (narrowgate_fidelity_kl_nats_total, "
            "narrowgate_fidelity_requests_total, narrowgate_drift_tolerance_nats, "
            "narrowgate_active_variant). Few requests make it jump: the verdict on the "
            "dashboard Fidelity says whether it is proven.",
            units.SHARE,
            NOT_SCORED,
            Query(worst_active_slice(), "{{model}}@{{variant}} {{slice}}"),
            decimals=0,
            thresholds=at_most(0.7, 1),
            leads_to="narrowgate-fidelity",
        ),
        tile(
            "Memory saved",
            "Bytes that the weights of loaded variants do not take "
            "(narrowgate_weights_uncompressed_bytes less narrowgate_weights_bytes). Less than "
            "expected: see what was applied on the dashboard Compression.",
            units.BYTES,
            "No compressed engine is loaded",
            Query(memory_saved(), "{{model}}@{{variant}}"),
            decimals=1,
            leads_to="narrowgate-compression",
        ),
    )


def _course() -> tuple[Panel, ...]:
    first, gap = "time_to_first_token_seconds", "inter_token_latency_seconds"
    return (
        lines(
            "Requests",
            "Requests that ended each second, by what became of them "
            "(narrowgate_requests_total); other operations than chat and completion are drawn "
            "from their second request on. Errors that grow: see the dashboard Gateway.",
            units.REQUESTS_PER_SECOND,
            NO_TRAFFIC,
            Query(rate("requests_total", "outcome"), "{{outcome}}"),
            width=6,
            stacked=True,
        ),
        lines(
            "Tokens",
            "Tokens generated and prompt tokens read each second, as engines count them "
            "(narrowgate_generated_tokens_total, narrowgate_prompt_tokens_total). A fall while "
            "requests wait: an engine is slow or stands still.",
            units.TOKENS_PER_SECOND,
            NO_TRAFFIC,
            Query(rate("generated_tokens_total", "model"), "{{model}} generated"),
            Query(rate("prompt_tokens_total", "model"), "{{model}} prompts"),
            width=6,
            dashed=("/prompts$/",),
        ),
        lines(
            "Time to first token",
            "From a streamed request's arrival to its first text, median and 95th percentile "
            "(narrowgate_time_to_first_token_seconds). High with waiting requests: too much "
            "traffic; high without: long prompts, or a slow engine.",
            units.SECONDS,
            NO_TRAFFIC,
            *(
                Query(quantile(share, first, "model"), "{{model}} " + name)
                for share, name in ((0.5, "p50"), (0.95, "p95"))
            ),
            width=6,
            dashed=("/p50$/",),
        ),
        lines(
            "Time between tokens",
            "Between two streamed pieces with text, median and 95th percentile "
            "(narrowgate_inter_token_latency_seconds), and the 95th percentile of the answers' own "
            "means (narrowgate_time_per_output_token_seconds). High: large batches, or cores that "
            "others use; see step times on the dashboard Engines.",
            units.SECONDS,
            NO_TRAFFIC,
            *(
                Query(quantile(share, gap, "model"), "{{model}} " + name)
                for share, name in ((0.5, "p50"), (0.95, "p95"))
            ),
            Query(
                quantile(0.95, "time_per_output_token_seconds", "model"),
                "{{model}} p95 of answers",
            ),
            width=6,
            dashed=("/p50$/", "/answers$/"),
        ),
    )


def _room() -> tuple[Panel, ...]:
    return (
        lines(
            "Waiting and running",
            "Requests that wait here for their turn, and requests passed to engines "
            "(narrowgate_requests_waiting, narrowgate_requests_running). Waiting that does not "
            "fall: more replicas, or lower rates of keys.",
            units.REQUESTS,
            "No model is configured",
            Query(total("requests_waiting", "model"), "{{model}} waiting"),
            Query(total("requests_running", "model"), "{{model}} running"),
            width=6,
            dashed=("/running$/",),
        ),
        lines(
            "Turned away",
            "Requests refused before they reached an engine, each second, by reason "
            "(narrowgate_admission_rejections_total). queue_full, queue_timeout, process_full: "
            "too little room; the others are the client's doing.",
            units.REQUESTS_PER_SECOND,
            "Nobody was turned away",
            Query(rate("admission_rejections_total", "reason"), "{{reason}}"),
            width=6,
            stacked=True,
        ),
        lines(
            "Cache in use",
            "Share of the fullest engine's cache of keys and values that sequences hold "
            "(narrowgate_engine_kv_cache_usage_ratio). Near 1: sequences wait or are read again; "
            "give the cache more memory, or a variant with a smaller cache.",
            units.SHARE,
            "No engine with a cache of its own is loaded",
            Query(
                highest("engine_kv_cache_usage_ratio", "model, variant"), "{{model}}@{{variant}}"
            ),
            width=6,
            highest=1,
        ),
        lines(
            "Memory",
            "What engines hold or have set aside, by variant, against the budget of all "
            "(narrowgate_reserved_memory_bytes, narrowgate_memory_budget_bytes). At the budget: "
            "models make room for each other; see evictions on the dashboard Gateway.",
            units.BYTES,
            "No engine is loaded",
            Query(total("reserved_memory_bytes", "model, variant"), "{{model}}@{{variant}}"),
            Query(total("memory_budget_bytes", "") + " > 0", "budget"),
            width=6,
            dashed=("budget",),
        ),
    )


def dashboard() -> Dashboard:
    """Return the overview."""
    return Dashboard(
        uid="narrowgate-overview",
        title="Narrowgate / Overview",
        description="Is the service fast, does quality hold, does compression pay, is there room.",
        rows=(
            Row("Now", (*_service(), *_quality())),
            Row("Traffic", _course()),
            Row("Room", _room()),
        ),
        variables=(first_token_limit(), inter_token_limit()),
    )
