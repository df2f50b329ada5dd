"""What a reader sees of every dashboard: places, words, colours, choices."""

import json
from itertools import pairwise
from typing import Any

import pytest

from gateway.metrics.family import FIRST_TOKEN_S, INTER_TOKEN_S
from grafana.catalogue import dashboards
from grafana.colours import BAD, GOOD, NEUTRAL, WARNING, Json
from grafana.dashboard import COLUMNS, Dashboard, Row
from grafana.panel import Panel
from tests.grafana.dimension import SHOWN

UIDS = [
    *("narrowgate-overview", "narrowgate-compression", "narrowgate-fidelity"),
    *("narrowgate-shadow", "narrowgate-engines", "narrowgate-gateway"),
]
ALL_PANELS = [panel for dashboard in dashboards() for panel in dashboard.panels()]
EACH = pytest.mark.parametrize("dashboard", dashboards(), ids=lambda each: each.uid)


def test_uids() -> None:
    """Links from alerts and runbooks rest on these."""
    assert [dashboard.uid for dashboard in dashboards()] == UIDS


@EACH
def test_no_two_panels_share_a_place(dashboard: Dashboard) -> None:
    """Panels lie within 24 columns, none on another, in the order in which they are listed."""
    taken: set[tuple[int, int]] = set()
    corners = []
    for panel in dashboard.json()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert all(0 <= x < COLUMNS for x, _ in cells), panel["title"]
        taken |= cells
        corners.append((at["y"], at["x"]))
    assert all(before < after for before, after in pairwise(corners))


@EACH
def test_rows_leave_no_holes(dashboard: Dashboard) -> None:
    """Panels beside each other fill the width and are equally high."""
    lines: dict[int, list[Json]] = {}
    for panel in dashboard.json()["panels"]:
        lines.setdefault(panel["gridPos"]["y"], []).append(panel["gridPos"])
    for places in lines.values():
        assert sum(place["w"] for place in places) == COLUMNS
        assert len({place["h"] for place in places}) == 1


@EACH
def test_ids_and_titles_are_unique(dashboard: Dashboard) -> None:
    """Ids and titles tell the panels of a dashboard apart."""
    for names in (
        [panel["id"] for panel in dashboard.json()["panels"]],
        [panel.title for panel in dashboard.panels()],
    ):
        assert len(set(names)) == len(names)


@EACH
def test_size(dashboard: Dashboard) -> None:
    """A dashboard is looked at, not read: 8 to 16 panels."""
    assert 8 <= len(dashboard.panels()) <= 16


@EACH
def test_frame(dashboard: Dashboard) -> None:
    """No dashboard brings an id of its own; all keep time and choices on the way to the others."""
    content = dashboard.json()
    wanted = {"id": None, "schemaVersion": 39, "refresh": "30s", "timezone": "browser"}
    assert wanted.items() <= content.items()
    (link,) = content["links"]
    assert (link["type"], link["keepTime"], link["includeVars"]) == ("dashboards", True, True)
    assert set(link["tags"]) <= set(content["tags"])
    marks = [mark["name"] for mark in content["annotations"]["list"]]
    assert marks == ["Ladder steps", "Swaps", "Verdicts", "Restarts"]


@EACH
def test_data_source_is_chosen(dashboard: Dashboard) -> None:
    """Whatever asks Prometheus asks the one that was chosen at the top."""
    sources: list[Any] = []

    def collect(part: object) -> None:
        if isinstance(part, dict):
            sources.extend(value for key, value in part.items() if key == "datasource")
            for value in part.values():
                collect(value)
        elif isinstance(part, list):
            for value in part:
                collect(value)

    content = dashboard.json()
    collect(content)
    targets = sum(len(panel.queries) for panel in dashboard.panels())
    assert len(sources) > targets
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)


@EACH
def test_variables(dashboard: Dashboard) -> None:
    """Data source, gateway, model and variant are chosen everywhere; All means every series."""
    variables = {each["name"]: each for each in dashboard.json()["templating"]["list"]}
    assert list(variables)[:4] == ["datasource", "instance", "model", "variant"]
    for each in variables.values():
        assert each["label"]
        assert each["description"]
        if each["type"] == "query":
            assert (each["multi"], each["includeAll"], each["allValue"]) == (True, True, ".*")
    text = json.dumps(dashboard.json()["panels"])
    hidden = {name for name, each in variables.items() if each["hide"]}
    assert hidden == {name for name in list(variables)[1:] if f"${name}" not in text}
    assert hidden <= {"variant"}


def test_limits_are_buckets() -> None:
    """Each limit that can be chosen is a bucket as the exposition spells it, one is chosen."""
    bounds = {"ttft_slo": FIRST_TOKEN_S, "itl_slo": INTER_TOKEN_S}
    variables = {each["name"]: each for each in dashboards()[0].json()["templating"]["list"]}
    for name, buckets in bounds.items():
        options = variables[name]["options"]
        assert {option["value"] for option in options} <= {str(float(b)) for b in buckets}
        assert [o["value"] for o in options if o["selected"]] == [
            variables[name]["current"]["value"]
        ]


@pytest.mark.parametrize("panel", ALL_PANELS, ids=lambda each: each.title)
def test_panel_explains_itself(panel: Panel) -> None:
    """Every panel has a title, a description with advice, a known unit and words for no data."""
    assert panel.title
    assert panel.title[0].isupper()
    assert ". " in panel.description
    assert panel.description.endswith(".")
    assert "  " not in panel.description
    assert panel.no_value not in ("", "No data", "0")
    assert all((query.unit or panel.unit) in SHOWN for query in panel.queries)
    assert len({query.expr for query in panel.queries}) == len(panel.queries)


@pytest.mark.parametrize("panel", ALL_PANELS, ids=lambda each: each.title)
def test_links_of_panels_lead_to_dashboards(panel: Panel) -> None:
    """A panel leads to one of our dashboards, if anywhere."""
    assert not panel.leads_to or panel.leads_to in UIDS


def test_verdicts_look_the_same_everywhere() -> None:
    """learning is blue, ok green, drift red, stale orange, wherever a verdict is shown."""
    wanted = {"learning": NEUTRAL, "ok": GOOD, "drift": BAD, "stale": WARNING}
    shown = 0
    for panel in (p for d in dashboards() for p in d.json()["panels"]):
        text = json.dumps(panel)
        if "narrowgate_drift_state" not in text:
            continue
        properties = [p for o in panel["fieldConfig"]["overrides"] for p in o["properties"]]
        mappings = [
            *panel["fieldConfig"]["defaults"].get("mappings", []),
            *(m for p in properties if p["id"] == "mappings" for m in p["value"]),
        ]
        words = next(m["options"] for m in mappings if m["type"] == "value")
        assert [words[number]["text"] for number in "0123"] == list(wanted)
        assert {word["text"]: word["color"] for word in words.values()} == wanted
        shown += 1
    assert shown == 4


def test_a_full_line_is_followed_by_the_next() -> None:
    """Panels that do not fit beside the others begin a new line below the highest."""
    source = dashboards()[0].rows[0].panels[0]
    wide = [
        Panel(**{**vars(source), "title": str(n), "width": 10, "height": 3 + n}) for n in range(3)
    ]
    made = Dashboard("u", "t", "d", (Row("r", tuple(wide)),)).json()["panels"]
    assert [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in made] == [
        *((0, 0), (0, 1), (10, 1)),
        (0, 5),
    ]
