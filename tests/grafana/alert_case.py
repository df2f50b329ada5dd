"""A case of an alert: series in, the alert as it must be, or none."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from grafana.alerting.files import alerts
from grafana.alerting.rule import GRAFANA, PREFIX

HERE = {"job": "narrowgate", "instance": "gw:8000"}
MODEL = HERE | {"model": "chat"}
VARIANT = MODEL | {"variant": "int4"}
REPLICA = VARIANT | {"replica": "0"}


def series(name: str, labels: Mapping[str, str], **more: str) -> str:
    """Return a series as Prometheus writes it."""
    shown = ",".join(f'{key}="{value}"' for key, value in {**labels, **more}.items())
    return f"{name}{{{shown}}}"


@dataclass(frozen=True)
class Case:
    """Series, a moment, and what is told of one alert then."""

    alert: str
    at: str
    input: Mapping[str, str]
    """Samples by series, in promtool's notation."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the alert that fires, but for its severity."""
    description: str = ""
    """Empty where it must not fire."""
    dashboard: str = ""
    every: str = "1m"
    """The time between two samples."""

    @property
    def fires(self) -> bool:
        """Return whether it must fire."""
        return bool(self.description)

    def promtool(self) -> dict[str, Any]:
        """Return the case as promtool reads it."""
        rule = next(each for each in alerts() if each.name == self.alert)
        fired = {
            "exp_labels": {**self.labels, "severity": rule.severity},
            "exp_annotations": {
                "summary": rule.summary,
                "description": self.description,
                "dashboard_url": GRAFANA + self.dashboard,
                "runbook_url": f"grafana/runbooks/{PREFIX}{self.alert}.md",
            },
        }
        expected = {
            "eval_time": self.at,
            "alertname": PREFIX + self.alert,
            "exp_alerts": [fired] if self.fires else [],
        }
        inputs = [{"series": name, "values": values} for name, values in self.input.items()]
        return {"interval": self.every, "input_series": inputs, "alert_rule_test": [expected]}
