"""The metrics manifest: every series of the project as Prometheus sees it.

The registry (:mod:`gateway.registry`), ``docs/metrics.md``, the
dashboards, the alerts and the checks of all of them are made from it.
"""

from typing import NamedTuple

from gateway.metrics.engine import ENGINE_FAMILIES, ENGINE_LABELS, ENGINE_PREFIX
from gateway.metrics.family import Label, Type, Unit
from gateway.metrics.own import FAMILIES, PREFIX

PATHS = ("/metrics", "/metrics/vllm", "/metrics/otel")
"""Where it is served: under its own names, under vLLM's and under OpenTelemetry's."""


class Row(NamedTuple):
    """One family as Prometheus sees it on the gateway, with its full name."""

    name: str
    type: Type
    unit: Unit
    labels: tuple[Label, ...]
    help: str
    buckets: tuple[float, ...]


def manifest() -> tuple[Row, ...]:
    """Return every family of ``/metrics``, but the process's own that the client library adds."""
    own = (
        Row(PREFIX + each.name, each.type, each.unit, each.labels, each.help, each.buckets)
        for each in FAMILIES
    )
    engines = (
        Row(
            ENGINE_PREFIX + each.name,
            each.type,
            each.unit,
            (*ENGINE_LABELS, *each.labels),
            each.help,
            each.buckets,
        )
        for each in ENGINE_FAMILIES
    )
    return (*own, *engines)
