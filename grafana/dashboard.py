"""One dashboard: rows of panels on a grid of 24 columns, and what goes around them."""

from dataclasses import dataclass
from typing import NamedTuple

from grafana import annotation, variable
from grafana.colours import Json
from grafana.panel import Panel

COLUMNS = 24
SCHEMA_VERSION = 39
TAG = "narrowgate"


class Row(NamedTuple):
    """A heading and the panels under it, from left to right."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """A dashboard; ``variables`` are those beside the common ones."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[Json, ...] = ()

    def panels(self) -> tuple[Panel, ...]:
        """Return its panels in the order of reading."""
        return tuple(panel for row in self.rows for panel in row.panels)

    def _choices(self) -> tuple[Json, ...]:
        return (*variable.common(), *self.variables)

    def _hidden_if_idle(self, choice: Json) -> Json:
        """Return a variable that is seen only where a query uses it, and kept for the links."""
        exprs = (query.expr for panel in self.panels() for query in panel.queries)
        is_idle = choice["type"] != "datasource" and not any(
            f"${choice['name']}" in expr for expr in exprs
        )
        return {**choice, "hide": 2} if is_idle else choice

    def json(self) -> Json:
        """Return what Grafana imports."""
        return {
            "id": None,
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "version": 1,
            "editable": True,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "templating": {"list": [self._hidden_if_idle(each) for each in self._choices()]},
            "annotations": {"list": list(annotation.common())},
            "links": [_links()],
            "panels": _placed(self.rows),
        }


def _placed(rows: tuple[Row, ...]) -> list[Json]:
    placed: list[Json] = []
    y = 0
    for row in rows:
        placed.append(_heading(len(placed) + 1, row.title, y))
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            placed.append(panel.json(len(placed) + 1, x, y))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _heading(panel_id: int, title: str, y: int) -> Json:
    return {
        "id": panel_id,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
        "panels": [],
    }


def _links() -> Json:
    return {
        "title": "Narrowgate",
        "type": "dashboards",
        "icon": "external link",
        "tooltip": "The other dashboards, same time and choice",
        "url": "",
        "tags": [TAG],
        "asDropdown": False,
        "targetBlank": False,
        "includeVars": True,
        "keepTime": True,
    }
