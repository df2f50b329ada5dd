"""One rule of each kind, and how rules become a file that Prometheus reads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent
from types import MappingProxyType
from typing import Literal

Severity = Literal["critical", "warning", "info"]

PREFIX = "Narrowgate"
GRAFANA = "http://127.0.0.1:3000"
"""Where links of alerts lead unless the external label ``grafana_url`` names another address."""

_GRAFANA_URL, _RUNBOOKS_URL = "$externalLabels.grafana_url", "$externalLabels.runbooks_url"
# An operator may leave a variable in the label's place; that is no address.
_AT_GRAFANA = (
    f'{{{{ if match "^http" {_GRAFANA_URL} }}}}{{{{ {_GRAFANA_URL} }}}}'
    f"{{{{ else }}}}{GRAFANA}{{{{ end }}}}"
)
_AT_RUNBOOKS = f'{{{{ if match "^http" {_RUNBOOKS_URL} }}}}{{{{ {_RUNBOOKS_URL} }}}}/{{{{ end }}}}'
HEADER = "# Made by `python -m grafana`; change grafana/alerting instead.\n"


@dataclass(frozen=True)
class Recording:
    """A series that is computed beforehand, named level:metric:operations."""

    record: str
    expr: str


@dataclass(frozen=True)
class Alert:
    """What somebody is told; its full name has the shared first word."""

    name: str
    severity: Severity
    expr: str
    wait: str
    why: str
    """The reason for ``wait``, the time for which the condition must hold."""
    summary: str
    description: str
    dashboard: str

    @property
    def full_name(self) -> str:
        """Return the name that Prometheus knows."""
        return PREFIX + self.name

    @property
    def runbook(self) -> str:
        """Return where its runbook is, from the repository's root."""
        return f"grafana/runbooks/{self.full_name}.md"

    @property
    def annotations(self) -> Mapping[str, str]:
        """Return what is written beside the alert; templates of Prometheus."""
        return {
            "summary": self.summary,
            "description": self.description,
            "dashboard_url": _AT_GRAFANA + self.dashboard,
            "runbook_url": _AT_RUNBOOKS + self.runbook,
        }


def render(
    groups: Mapping[str, Sequence[Recording | Alert]],
    intervals: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the rule file with these groups; ``intervals`` are of those with one of their own."""
    parts = [HEADER, "groups:\n"]
    for name, rules in groups.items():
        interval = f"    interval: {intervals[name]}\n" if name in intervals else ""
        parts.append(f"  - name: {name}\n{interval}    rules:\n")
        parts += (indent(_render(rule), " " * 6) for rule in rules)
    return "".join(parts)


def _render(rule: Recording | Alert) -> str:
    expr = f"  expr: |-\n{indent(rule.expr, ' ' * 4)}\n"
    if isinstance(rule, Recording):
        return f"- record: {rule.record}\n{expr}"
    lines = [f"  for: {rule.wait} # {rule.why}", "  labels:", f"    severity: {rule.severity}"]
    lines.append("  annotations:")
    lines += (f"    {key}: {_quoted(text)}" for key, text in rule.annotations.items())
    return f"- alert: {rule.full_name}\n{expr}" + "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a string of JSON is one of YAML
