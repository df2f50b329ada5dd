"""What happened, as marks over every panel."""

from grafana.colours import BAD, NEUTRAL, WARNING, Json
from grafana.panel import DATASOURCE
from grafana.query import events


def common() -> tuple[Json, ...]:
    """Return the marks of every dashboard."""
    return (
        _marks(
            "Ladder steps",
            "purple",
            events("ladder_steps_total", "model, from, to, reason"),
            "{{model}}: {{from}} → {{to}} ({{reason}})",
        ),
        _marks(
            "Swaps",
            NEUTRAL,
            events("variant_swaps_total", "model, result"),
            "{{model}}: swap {{result}}",
        ),
        _marks(
            "Verdicts",
            BAD,
            _verdict_changes(),
            "{{model}}@{{variant}} {{slice}}: {{state}}",
        ),
        _marks(
            "Restarts",
            WARNING,
            events("engine_restarts_total", "model, variant, reason"),
            "{{model}}@{{variant}}: engine restarted ({{reason}})",
        ),
    )


def _verdict_changes() -> str:
    """Return the changes of whole models, and slices that began to drift; the rest is noise."""
    name, by = "verdict_changes_total", "model, variant, slice, state"
    return " or ".join(events(name, by, each) for each in ('slice="all"', 'state="drift"'))


def _marks(name: str, colour: str, expr: str, text: str) -> Json:
    return {
        "name": name,
        "datasource": dict(DATASOURCE),
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "step": "60s",
        "titleFormat": name,
        "textFormat": text,
        "useValueForTime": False,
    }
