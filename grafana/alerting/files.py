"""The rule files: which rules stand in which, and what each holds."""

from pathlib import Path

from grafana.alerting.engines import engine_alerts
from grafana.alerting.fidelity import fidelity_alerts
from grafana.alerting.recording import recordings
from grafana.alerting.rule import Alert, render
from grafana.alerting.service import service_alerts

RULES = Path(__file__).parents[1] / "rules"


def alerts() -> tuple[Alert, ...]:
    """Return every alert."""
    return (*service_alerts(), *engine_alerts(), *fidelity_alerts())


def files() -> dict[Path, str]:
    """Return the rule files with their texts."""
    groups = {
        "narrowgate-service": list(service_alerts()),
        "narrowgate-engines": list(engine_alerts()),
        "narrowgate-fidelity": list(fidelity_alerts()),
    }
    return {
        RULES / "recording.yaml": render({"narrowgate-objectives": list(recordings())}),
        RULES / "alerts.yaml": render(groups),
    }
