"""Alerts about engines: whether they run, move forward, and have room."""

from collections.abc import Iterator

from grafana.alerting.query import REPLICA, also, grown
from grafana.alerting.rule import Alert

_ENGINES = "/d/narrowgate-engines?var-model={{ $labels.model | urlquery }}"
_WHERE = "{{ $labels.model }}@{{ $labels.variant }} at {{ $labels.instance }}"
_RESTARTS = "narrowgate_engine_restarts_total"
_WAITING = "min_over_time(narrowgate_engine_sequences_waiting[5m]) > 0"
_PREEMPTED = "increase(narrowgate_engine_preemptions_total[10m]) > 0"


def engine_alerts() -> Iterator[Alert]:
    """Yield the alerts about engines."""
    # One that failed is loaded again on demand, and is `loading` for that while.
    lost = 'max_over_time(narrowgate_model_state{state=~"failed|restarting"}[3m]) == 1'
    yield Alert(
        name="NoEngineReady",
        severity="critical",
        expr=f"narrowgate_active_variant == 1\n{also('narrowgate_engine_up == 0')}\n{also(lost)}",
        wait="2m",
        why="one restart with its load is often shorter",
        summary="The variant that serves a model has no engine.",
        description=f"{_WHERE} has failed or restarts again and again; "
        "its requests are refused, or go to a fallback.",
        dashboard=_ENGINES,
    )
    yield from _liveness()
    yield Alert(
        name="KVCacheFull",
        severity="warning",
        expr="avg_over_time(narrowgate_engine_kv_cache_usage_ratio[5m]) > 0.9\n"
        f"{also(f'({_WAITING} or {_PREEMPTED})', REPLICA)}",
        wait="5m",
        why="one long request may fill the cache for a while",
        summary="An engine's cache is full, and sequences wait or give their pages up.",
        description=f"{{{{ $value | humanizePercentage }}}} of the pages of {_WHERE}, replica "
        "{{ $labels.replica }}, are held.",
        dashboard=_ENGINES,
    )
    yield from _residence()


def _liveness() -> Iterator[Alert]:
    running = "min_over_time(narrowgate_engine_sequences_running[3m]) > 0"
    silent = "increase(narrowgate_engine_generated_tokens_total[3m]) == 0"
    stalls = grown(f'{_RESTARTS}{{reason="stall"}}', "15m", 900)
    yield Alert(
        name="EngineStalled",
        severity="warning",
        expr=f"count without (replica) (\n  {running}\n  and {silent}\n)\n"
        f"or\nsum without (reason) {stalls} > 0",
        wait="1m",
        why="the windows are long enough; one minute spares a scrape that failed",
        summary="An engine has work and makes no tokens, or was restarted for it.",
        description=f"{{{{ $value | humanize }}}} engines of {_WHERE} stood still "
        "in the last 15 minutes.",
        dashboard=_ENGINES,
    )
    yield Alert(
        name="EngineRestartLoop",
        severity="warning",
        expr=f"sum without (reason) {grown(_RESTARTS, '15m', 900)} > 2.5",
        wait="0m",
        why="the count spans 15 minutes by itself",
        summary="Engines are lost again and again.",
        description=f"{_WHERE} lost engines {{{{ $value | humanize }}}} times in 15 minutes; "
        "after seven losses in five minutes one is given up.",
        dashboard=_ENGINES,
    )


def _residence() -> Iterator[Alert]:
    swaps = grown('narrowgate_variant_swaps_total{result="failed"}', "15m", 900)
    evictions = grown('narrowgate_evictions_total{reason="memory"}', "30m", 1800)
    yield Alert(
        name="SwapFailed",
        severity="warning",
        expr=f"sum without (result) {swaps} > 0",
        wait="0m",
        why="it happened; nothing makes it undone",
        summary="A change of the active variant failed; the old one serves on.",
        description="{{ $value | humanize }} swaps of {{ $labels.model }} at "
        "{{ $labels.instance }} failed in 15 minutes.",
        dashboard=_ENGINES,
    )
    yield Alert(
        name="EvictionChurn",
        severity="warning",
        expr=f"sum without (variant, reason, model) {evictions} > 6",
        wait="10m",
        why="a change of what people ask for evicts a few times, then rests",
        summary="Variants push each other out of memory.",
        description="{{ $labels.instance }} stopped variants {{ $value | humanize }} times "
        "in 30 minutes to make room.",
        dashboard="/d/narrowgate-engines",
    )
