"""One panel: what it asks, what it says of itself, and the JSON of both."""

from dataclasses import dataclass, field
from typing import NamedTuple

from grafana.colours import Json

DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


class Query(NamedTuple):
    """One query of a panel."""

    expr: str
    legend: str = ""
    column: str = ""
    """The heading of its values in a table."""
    unit: str = ""
    """Where it is not the panel's."""


@dataclass(frozen=True)
class Panel:
    """A panel without its place."""

    type: str
    title: str
    description: str
    unit: str
    no_value: str
    queries: tuple[Query, ...]
    width: int
    height: int
    options: Json
    is_instant: bool = False
    defaults: Json = field(default_factory=dict)
    overrides: tuple[Json, ...] = ()
    transformations: tuple[Json, ...] = ()
    leads_to: str = ""
    """The uid of the dashboard that tells more."""

    def json(self, panel_id: int, x: int, y: int) -> Json:
        """Return the panel at a place of the grid."""
        return {
            "id": panel_id,
            "type": self.type,
            "title": self.title,
            "description": self.description,
            "datasource": dict(DATASOURCE),
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(index) for index in range(len(self.queries))],
            "fieldConfig": {
                "defaults": {"unit": self.unit, "noValue": self.no_value, **self.defaults},
                "overrides": list(self.overrides),
            },
            "options": self.options,
            "transformations": list(self.transformations),
            "transparent": False,
            "links": [_link(self.leads_to)] if self.leads_to else [],
        }

    def _target(self, index: int) -> Json:
        query = self.queries[index]
        return {
            "refId": ref_id(index),
            "datasource": dict(DATASOURCE),
            "editorMode": "code",
            "exemplar": not self.is_instant and "_bucket" in query.expr,
            "expr": query.expr,
            "format": "table" if self.type == "table" else "time_series",
            "instant": self.is_instant,
            "range": not self.is_instant,
            "legendFormat": query.legend or "__auto",
        }


def ref_id(index: int) -> str:
    """Return the letter of a panel's query."""
    return chr(ord("A") + index)


def _link(uid: str) -> Json:
    return {
        "title": "More of it",
        "type": "link",
        "icon": "external link",
        "tooltip": "",
        "url": f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}",
        "tags": [],
        "asDropdown": False,
        "targetBlank": False,
        "includeVars": False,
        "keepTime": False,
    }
