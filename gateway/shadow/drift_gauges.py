"""What the metrics say of verdicts."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType

from gateway.registry import Metrics
from gateway.shadow.slices import ALL
from gateway.shadow.verdict import State, Verdict

STATE_VALUES: Mapping[State, int] = MappingProxyType(
    {State.LEARNING: 0, State.OK: 1, State.DRIFT: 2, State.STALE: 3}
)


_OF_A_MONITOR = (
    "drift_state",
    "drift_e_value_log10",
    "drift_mean_lower_nats",
    "drift_mean_upper_nats",
    "drift_tolerance_nats",
)


def forget_verdicts(metrics: Metrics, model: str, variant: str) -> None:
    """Take back what was said of a variant: other weights or another reference begin anew."""
    for name in _OF_A_MONITOR:
        metrics.gauges[name].remove_by_labels({"model": model, "variant": variant})


def record_verdicts(
    metrics: Metrics,
    model: str,
    variant: str,
    verdicts: Iterable[Verdict],
    alarms: Mapping[str, Verdict],
) -> None:
    """Write the verdicts of a variant: of the whole model, and of slices that were seen.

    ``alarms`` has, by slice, what was known when it came into drift.
    """
    gauges = metrics.gauges
    for verdict in verdicts:
        labels = (model, variant, verdict.slice)
        alarm = alarms.get(verdict.slice)
        if verdict.state is State.DRIFT and alarm is not None and alarm.since_build is None:
            gauges["drift_alarm_mean_nats"].labels(*labels).set(alarm.mean)
        else:
            with suppress(KeyError):  # older client libraries mind what is not there
                gauges["drift_alarm_mean_nats"].remove(*labels)
        is_told = verdict.state is State.STALE or verdict.since_build is not None
        is_seen = verdict.last_scored is not None or is_told
        if verdict.slice != ALL and not is_seen:
            continue
        gauges["drift_state"].labels(*labels).set(STATE_VALUES[verdict.state])
        gauges["drift_e_value_log10"].labels(*labels).set(verdict.log10_e)
        gauges["drift_mean_lower_nats"].labels(*labels).set(verdict.lower)
        gauges["drift_mean_upper_nats"].labels(*labels).set(verdict.upper)
        if verdict.tolerance is not None:
            gauges["drift_tolerance_nats"].labels(*labels).set(verdict.tolerance)
