"""The JSON of dashboards, held against Grafana's own types of the version that is deployed."""

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any, get_args, get_type_hints

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as schema

from grafana.catalogue import dashboards
from grafana.dashboard import Dashboard

OF_PROMETHEUS = {"step", "titleFormat", "textFormat", "useValueForTime"}
"""Keys of annotations that Prometheus's data source adds to the schema."""

EACH = pytest.mark.parametrize("dashboard", dashboards(), ids=lambda each: each.uid)


@pytest.fixture(scope="module", autouse=True)
def _panels_and_queries_are_known() -> None:
    plugins.register_default_plugins()


def written(dashboard: Dashboard) -> dict[str, Any]:
    """Return a dashboard as it is in its file."""
    content: dict[str, Any] = json.loads(json.dumps(dashboard.json()))
    return content


def lost(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Yield what Grafana's types do not take over as it was written."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            if key in OF_PROMETHEUS and where.startswith(".annotations"):
                continue
            if key in after:
                yield from lost(value, after[key], f"{where}.{key}")
            elif value is not None:
                yield f"{where}.{key}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from lost(one, other, f"{where}[{index}]")
    elif before != after:
        yield f"{where}: {before!r} became {after!r}"


def misspelt(read: object, where: str = "") -> Iterator[str]:
    """Yield values that are not among those of their enumeration."""
    if isinstance(read, list):
        for index, each in enumerate(read):
            yield from misspelt(each, f"{where}[{index}]")
    elif type(read).__module__.startswith("grafana_foundation_sdk.models"):
        hints = get_type_hints(type(read))
        for name, value in vars(read).items():
            hint = hints.get(name)
            for enum in (hint, *get_args(hint)):
                if isinstance(enum, type) and issubclass(enum, Enum) and value is not None:
                    allowed = {each.value for each in enum} | set(enum)
                    if value not in allowed:
                        yield f"{where}.{name}: {value!r}"
            yield from misspelt(value, f"{where}.{name}")


@EACH
def test_schema_knows_every_key(dashboard: Dashboard) -> None:
    """Each key that is written is one of Grafana's, with the same value after a round trip."""
    content = written(dashboard)
    read = schema.Dashboard.from_json(content)
    assert list(lost(content, json.loads(json.dumps(read, cls=JSONEncoder)))) == []


@EACH
def test_schema_knows_every_word(dashboard: Dashboard) -> None:
    """Each value that Grafana enumerates is one of its words."""
    assert list(misspelt(schema.Dashboard.from_json(written(dashboard)))) == []


def test_misspelt_keys_and_words_are_seen() -> None:
    """A wrong key and a wrong word, deep in a panel, are found by the two tests above."""
    content = written(dashboards()[0])
    panels = content["panels"]
    tile, chart = (
        next(panel for panel in panels if panel["type"] == wanted)
        for wanted in ("stat", "timeseries")
    )
    tile["options"]["graphMod"] = tile["options"].pop("graphMode")
    chart["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "lines"
    read = schema.Dashboard.from_json(content)
    assert list(lost(content, json.loads(json.dumps(read, cls=JSONEncoder)))) == [
        ".panels[1].options.graphMod"
    ]
    assert [each.rpartition(".")[2] for each in misspelt(read)] == ["draw_style: 'lines'"]
