"""The rule files: which rules stand in which, and what each holds."""

from grafana.alerting.engines import engine_alerts
from grafana.alerting.fidelity import fidelity_alerts
from grafana.alerting.objectives import LONG_INTERVAL, LONG_WINDOWS, SHORT_WINDOWS
from grafana.alerting.recording import recordings
from grafana.alerting.rule import Alert, render
from grafana.alerting.service import service_alerts

LONG_GROUP = "narrowgate-objectives-long"


def alerts() -> tuple[Alert, ...]:
    """Return every alert."""
    return (*service_alerts(), *engine_alerts(), *fidelity_alerts())


def rule_files() -> dict[str, str]:
    """Return the texts of the rule files by their names."""
    groups = {
        "narrowgate-service": list(service_alerts()),
        "narrowgate-engines": list(engine_alerts()),
        "narrowgate-fidelity": list(fidelity_alerts()),
    }
    objectives = {
        "narrowgate-objectives": list(recordings(SHORT_WINDOWS)),
        LONG_GROUP: list(recordings(LONG_WINDOWS)),
    }
    return {
        "recording.yaml": render(objectives, {LONG_GROUP: LONG_INTERVAL}),
        "alerts.yaml": render(groups),
    }
