"""Alerts about the gateway: whether it answers, how well, and whether it keeps up."""

from collections.abc import Iterator, Sequence

from grafana.alerting.objectives import (
    AVAILABILITY,
    FAST,
    FIRST_TOKEN,
    FIRST_TOKEN_S,
    MIN_EVENTS,
    SLOW,
    Burn,
    error_budget,
)
from grafana.alerting.query import GATEWAY, grown
from grafana.alerting.recording import FAILED
from grafana.alerting.recording import SLOW as LATE
from grafana.alerting.rule import Alert

_OVERVIEW = "/d/narrowgate-overview"
_OF_MODEL = "?var-model={{ $labels.model | urlquery }}"
_GATEWAY = "/d/narrowgate-gateway"
_FULL = 'reason=~"queue_full|queue_timeout|process_full"'
MAX_SAMPLES = 20_000


def service_alerts() -> Iterator[Alert]:
    """Yield the alerts about the gateway."""
    yield Alert(
        name="GatewayDown",
        severity="critical",
        expr=f"up{{{GATEWAY}}} == 0\nor absent(up{{{GATEWAY}}})",
        wait="1m",
        why="a restart takes seconds",
        summary="A gateway does not answer.",
        description="Prometheus gets no metrics from "
        "{{ with $labels.instance }}{{ . }}{{ else }}any gateway{{ end }}.",
        dashboard=_OVERVIEW,
    )
    yield from _burns()
    yield from _queue()
    yield Alert(
        name="RateStoreFailing",
        severity="warning",
        expr="increase(narrowgate_rate_store_failures_total[5m]) > 0",
        wait="6m",
        why="longer than the window: one failure, or a restart of the store, was survived",
        summary="The shared store of rate limits fails, so each gateway counts alone.",
        description="{{ $labels.instance }} could not use the store {{ $value | humanize }} times "
        "in 5 minutes; with several gateways a key gets its limit at each.",
        dashboard=_GATEWAY,
    )
    yield Alert(
        name="MetricsCardinality",
        severity="warning",
        expr=f"scrape_samples_scraped{{{GATEWAY}}} > {MAX_SAMPLES}",
        wait="15m",
        why="the number of series does not come and go; this is not urgent",
        summary="A gateway has more series than Prometheus should keep.",
        description="{{ $labels.instance }} gave {{ $value | humanize }} samples at a scrape, "
        "more than 20k.",
        dashboard=_GATEWAY,
    )


def _burns() -> Iterator[Alert]:
    late = f"had their first token after more than {FIRST_TOKEN_S} s"
    for name, bad, objective, noun, words, summary in (
        ("ErrorBudget", FAILED, AVAILABILITY, "requests", "failed", "Too many requests fail."),
        ("FirstTokenBudget", LATE, FIRST_TOKEN, "streams", late, "Too many streams begin late."),
    ):
        budget = error_budget(objective)
        told = f"{{{{ $value | humanizePercentage }}}} of the {noun} to {{{{ $labels.model }}}}"
        yield Alert(
            name=f"{name}BurnFast",
            severity="critical",
            expr=_burn(bad, budget, FAST),
            wait="2m",
            why="two windows agree already; two minutes are two evaluations and more",
            summary=f"{summary} A month's budget is gone within days.",
            description=f"{told} {words} in the last hour or six; {budget:.0%} may.",
            dashboard=_OVERVIEW + _OF_MODEL,
        )
        yield Alert(
            name=f"{name}BurnSlow",
            severity="warning",
            expr=_burn(bad, budget, SLOW),
            wait="15m",
            why="days are measured, so minutes do not matter",
            summary=f"{summary} A month's budget will not last.",
            description=f"{told} {words} in the last three days; {budget:.0%} may.",
            dashboard=_OVERVIEW + _OF_MODEL,
        )


def _burn(bad: str, budget: float, burns: Sequence[Burn]) -> str:
    arms = (
        f"(\n"
        f"  {bad}:ratio_rate{burn.long} > {burn.factor} * {budget}\n"
        f"  and {bad}:ratio_rate{burn.short} > {burn.factor} * {budget}\n"
        f"  and {bad}:rate{burn.long} * {burn.long_s} >= {MIN_EVENTS}\n"
        f")"
        for burn in burns
    )
    return "\nor\n".join(arms)


def _queue() -> Iterator[Alert]:
    counted = grown(f"narrowgate_admission_rejections_total{{{_FULL}}}", "2m", 120)
    yield Alert(
        name="QueueSaturated",
        severity="warning",
        expr=f"sum without (reason) {counted} > 2",
        wait="5m",
        why="longer than the window: a burst is what a queue is for",
        summary="Requests are turned away because the queue is full or too slow.",
        description="{{ $labels.instance }} turned {{ $value | humanize }} requests for "
        "{{ $labels.model }} away in 2 minutes: queue full, waited too long, or process full.",
        dashboard=_GATEWAY + _OF_MODEL,
    )
    yield Alert(
        name="QueueStanding",
        severity="warning",
        expr="narrowgate_requests_waiting > 0",
        wait="15m",
        why="a queue that was empty once in this time is only a burst",
        summary="A model's queue has not been empty for a quarter of an hour.",
        description="{{ $value | humanize }} requests wait for {{ $labels.model }} at "
        "{{ $labels.instance }}; more come in than are answered.",
        dashboard=_GATEWAY + _OF_MODEL,
    )
