"""All dashboards, in the order in which they are read."""

from grafana import compression, engines, fidelity, gateway, overview, shadow
from grafana.dashboard import Dashboard


def dashboards() -> tuple[Dashboard, ...]:
    """Return every dashboard."""
    return tuple(
        each.dashboard() for each in (overview, compression, fidelity, shadow, engines, gateway)
    )
