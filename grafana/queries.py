"""What the dashboards ask, for those who hold it against a Prometheus."""

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from grafana.catalogue import dashboards
from grafana.variable import ALL

_BY_GATEWAY = "the gateway's own families tell what clients feel; this one is for comparing engines"
NOT_SHOWN: Mapping[str, str] = MappingProxyType(
    {
        "narrowgate_probes_total": "its panel and its alert show what probes found",
        "narrowgate_engine_prompt_tokens_total": _BY_GATEWAY,
        "narrowgate_engine_queue_seconds": _BY_GATEWAY,
        "narrowgate_engine_time_to_first_token_seconds": _BY_GATEWAY,
        "narrowgate_engine_inter_token_latency_seconds": _BY_GATEWAY,
        "narrowgate_engine_sequence_seconds": _BY_GATEWAY,
    }
)
"""Metrics that no panel and no rule asks for, and why."""


class PanelQuery(NamedTuple):
    """One query of one panel, its variables not yet replaced."""

    dashboard: str
    panel: str
    unit: str
    kind: Literal["range", "instant"]
    expr: str


def all_queries() -> Iterator[PanelQuery]:
    """Yield every query of every panel, in the order of reading."""
    for dashboard in dashboards():
        for panel in dashboard.panels():
            kind: Literal["range", "instant"] = "instant" if panel.is_instant else "range"
            for query in panel.queries:
                unit = query.unit or panel.unit
                yield PanelQuery(dashboard.uid, panel.title, unit, kind, query.expr)


def substituted(
    expr: str,
    *,
    model: str = ALL,
    variant: str = ALL,
    instance: str = ALL,
    slice_name: str = ALL,
    ttft_slo: str = "1.0",
    itl_slo: str = "0.1",
    rate_interval: str = "1m",
    range: str = "1h",
) -> str:
    """Return a query as Grafana would send it; durations as Prometheus writes them.

    Raises:
        ValueError: a variable is left that no dashboard has.
    """
    values = {
        "model": model,
        "variant": variant,
        "instance": instance,
        "slice": slice_name,
        "ttft_slo": ttft_slo,
        "itl_slo": itl_slo,
        "__rate_interval": rate_interval,
        "__range": range,
    }

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in values:
            raise ValueError(f"${name}: no such variable; take one of {', '.join(values)}")
        return values[name]

    return re.sub(r"\$(\w+)", value, expr)
