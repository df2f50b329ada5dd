"""The shadow: what is scored, what is not and why, and what scoring costs."""

from grafana import units
from grafana.charts import lines, tile
from grafana.colours import at_least, at_most, up
from grafana.dashboard import Dashboard, Row
from grafana.panel import Panel, Query
from grafana.query import gained, highest, quantile, rate, ratio, recent, total

OFF = "Nothing drawn: is shadow.rate 0?"
NO_REFERENCE = "No reference: is shadow.rate 0?"
NO_FREE_RUN = "No free run: is shadow.free_run 0?"
NOT_SCORED = "Nothing scored: is shadow.rate 0?"
_BY = "model"
_NAMED = "{{model}}"


def _unaccounted() -> str:
    """Return candidates less those scored, dropped and under way; 0 whenever all are accounted for.

    Of lifetime counts, which one scrape reads together; a gain over a range is an estimate.
    """
    by = "model, instance"
    drawn = total("shadow_candidates_total", by)
    parts = ("shadow_scored_total", "shadow_dropped_total", "shadow_in_flight")
    taken = [f"({total(part, by)} or 0 * {drawn})" for part in parts]
    return f"{drawn} - {' - '.join(taken)}"


def _tiles() -> tuple[Panel, ...]:
    drawn, scored = gained("shadow_candidates_total", _BY), gained("shadow_scored_total", _BY)
    return (
        tile(
            "Reference",
            "Whether the full model takes texts to score (narrowgate_shadow_reference_up). It "
            "sleeps while nothing is to be scored; down while candidates are dropped as "
            "`reference`: read its log lines, and see its failures below.",
            units.STATE,
            NO_REFERENCE,
            Query(highest("shadow_reference_up", _BY), _NAMED),
            mappings=(up(),),
        ),
        tile(
            "Share of requests drawn",
            "The share that the settings ask for (narrowgate_shadow_sample_ratio). 0: nothing is "
            "ever scored and no verdict can be had; set shadow.rate.",
            units.SHARE,
            NO_REFERENCE,
            Query(highest("shadow_sample_ratio", _BY), _NAMED),
            decimals=1,
        ),
        tile(
            "Scored of drawn",
            "Share of drawn requests that were scored in the time range "
            "(narrowgate_shadow_scored_total, narrowgate_shadow_candidates_total). Low: the "
            "reasons are below; budget and busy are no faults, the rest may be.",
            units.SHARE,
            OFF,
            Query(ratio(f"({scored} or 0 * {drawn})", drawn), _NAMED),
            decimals=1,
            thresholds=at_least(0.1, 0.5),
        ),
        tile(
            "Unaccounted",
            "Requests drawn less those scored, dropped and under way "
            "(narrowgate_shadow_candidates_total, narrowgate_shadow_scored_total, "
            "narrowgate_shadow_dropped_total, narrowgate_shadow_in_flight). Anything but 0 is a "
            "defect of the gateway: report it with its log.",
            units.REQUESTS,
            OFF,
            Query(_unaccounted(), "{{model}} {{instance}}"),
            decimals=0,
            thresholds=at_most(1, 2),
        ),
    )


def _pending() -> tuple[Panel, ...]:
    return (
        tile(
            "Under way",
            "Drawn requests whose score is not yet there (narrowgate_shadow_in_flight). Growing "
            "without end: the reference stands still, or requests leave it no time.",
            units.REQUESTS,
            OFF,
            Query(total("shadow_in_flight", _BY), _NAMED),
            is_instant=False,
        ),
        tile(
            "Queue",
            "Captured replies that wait for the reference (narrowgate_shadow_queue_length). Full: "
            "the rest is dropped as queue_full; draw fewer.",
            units.REQUESTS,
            OFF,
            Query(total("shadow_queue_length", ""), "waiting"),
            is_instant=False,
        ),
    )


def _flow() -> tuple[Panel, ...]:
    return (
        lines(
            "Drawn, scored, dropped",
            "Each second (narrowgate_shadow_candidates_total, narrowgate_shadow_scored_total, "
            "narrowgate_shadow_dropped_total). Drawn without scored: verdicts become stale; see "
            "the reasons beside this.",
            units.REQUESTS_PER_SECOND,
            OFF,
            Query(rate("shadow_candidates_total", ""), "candidates"),
            Query(rate("shadow_scored_total", ""), "scored"),
            Query(rate("shadow_dropped_total", ""), "dropped"),
            width=12,
        ),
        lines(
            "Dropped, by reason",
            "Each second (narrowgate_shadow_dropped_total). budget: raise shadow's tokens a "
            "second. busy: the machine has no idle time. no_capture, unsupported: the engine "
            "cannot be captured. reference, timeout, error: read the log.",
            units.REQUESTS_PER_SECOND,
            "Nothing was dropped",
            Query(rate("shadow_dropped_total", "reason"), "{{reason}}"),
            width=12,
            stacked=True,
        ),
        lines(
            "Lag",
            "Time from the capture of a reply to its score, median and 95th percentile "
            "(narrowgate_shadow_lag_seconds). Minutes: verdicts tell of the past; draw fewer, or "
            "give the reference more time.",
            units.SECONDS,
            NOT_SCORED,
            Query(quantile(0.5, "shadow_lag_seconds", _BY), "{{model}} p50"),
            Query(quantile(0.95, "shadow_lag_seconds", _BY), "{{model}} p95"),
            width=12,
            dashed=("/p50$/",),
        ),
        lines(
            "Gave way",
            "Scorings broken off each second because requests came (narrowgate_shadow_yields_total"
            "). Often: scoring hardly gets on, and no verdict will come under this load.",
            units.EVENTS_PER_SECOND,
            "Never gave way",
            Query(rate("shadow_yields_total", _BY), _NAMED),
            width=12,
        ),
    )


def _cost() -> tuple[Panel, ...]:
    return (
        lines(
            "Tokens read, against the budget",
            "Tokens that references read each second, and what they may in the long run "
            "(narrowgate_shadow_reference_tokens_total, narrowgate_shadow_budget_tokens_per_second"
            "). At the budget: candidates are dropped as budget.",
            units.TOKENS_PER_SECOND,
            NOT_SCORED,
            Query(rate("shadow_reference_tokens_total", _BY), _NAMED),
            Query(total("shadow_budget_tokens_per_second", "") + " > 0", "budget"),
            dashed=("budget",),
        ),
        lines(
            "Processor",
            "Cores that references on this machine use on average "
            "(narrowgate_shadow_cpu_seconds_total). They run at the lowest priority; if first "
            "tokens come late while this is high, lower the budget.",
            units.CORES,
            NOT_SCORED,
            Query(rate("shadow_cpu_seconds_total", _BY), _NAMED),
        ),
        lines(
            "Failures",
            "Starts and scorings of the reference that failed lately "
            "(narrowgate_shadow_reference_failures_total). They cost scores, never requests; read "
            "the log for why.",
            units.COUNT,
            "The reference never failed",
            Query(recent("shadow_reference_failures_total", _BY), _NAMED),
        ),
    )


def _free_runs() -> tuple[Panel, ...]:
    by, named = "model, variant, side", "{{model}}@{{variant}} {{side}}"
    checks = "fidelity_free_run_checks_total"
    checked = rate(checks, f"{by}, check")
    failed = rate(checks, f"{by}, check", 'result="failed"')
    compared = rate("fidelity_free_runs_total", "model, variant", 'result="compared"')
    tokens = rate("fidelity_free_run_tokens_total", by)
    return (
        lines(
            "Free runs, by result",
            "Scored requests that the full model was to answer itself, each second, by what became "
            "of it (narrowgate_fidelity_free_runs_total). Only compared ones say anything; budget, "
            "busy and too_many are no faults.",
            units.EVENTS_PER_SECOND,
            NO_FREE_RUN,
            Query(rate("fidelity_free_runs_total", "result"), "{{result}}"),
            stacked=True,
        ),
        lines(
            "Failed checks of both answers",
            "Share of compared free runs whose answer fails a check: form (json, tool_call), "
            "repetition, refusal, an end of its own (finish); of the variant and of the full model "
            "(narrowgate_fidelity_free_run_checks_total). The variant above full: it breaks what "
            "the full model keeps; its interval is in /admin/fidelity.",
            units.SHARE,
            NO_FREE_RUN,
            Query(ratio(f"({failed} or 0 * {checked})", checked), named + " {{check}}"),
            dashed=("/ full /",),
        ),
        lines(
            "Length of both answers",
            "Mean tokens of the variant's and of the full model's answer to the same requests "
            "(narrowgate_fidelity_free_run_tokens_total, narrowgate_fidelity_free_runs_total). The "
            "variant's much longer or shorter: it rambles or stops early.",
            units.TOKENS,
            NO_FREE_RUN,
            Query(f"{tokens} / on (model, variant) group_left () ({compared} > 0)", named),
            dashed=("/ full$/",),
        ),
    )


def dashboard() -> Dashboard:
    """Return the dashboard of scoring."""
    return Dashboard(
        uid="narrowgate-shadow",
        title="Narrowgate / Shadow",
        description="What is scored beside the traffic, what is not and why, and what it costs.",
        rows=(
            Row("Now", (*_tiles(), *_pending())),
            Row("From request to score", _flow()),
            Row("Cost", _cost()),
            Row("Free runs", _free_runs()),
        ),
    )
