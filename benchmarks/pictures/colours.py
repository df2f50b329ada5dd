"""Grafana's names of colours as values, on a dark ground."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

GROUND, PANEL, EDGE = "#111217", "#181b1f", "#2c3235"
TEXT, FAINT = "#d8d9da", "#8e9196"

NAMED: Mapping[str, str] = MappingProxyType(
    {
        "green": "#73bf69",
        "orange": "#ff9830",
        "dark-orange": "#fa6400",
        "red": "#f2495c",
        "blue": "#5794f2",
        "yellow": "#fade2a",
        "purple": "#b877d9",
        "gray": "#8e9196",
        "text": TEXT,
    }
)
PALETTE = (
    *("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0"),
    *("#508642", "#cca300", "#447ebc", "#c15c17", "#890f02", "#0a437c", "#6d1f62", "#584477"),
)


def of_line(panel: dict[str, Any], legend: str, place: int) -> str:
    """Return the colour of a series: an override's, or the next of the palette."""
    for name, value in overrides(panel, legend):
        if name == "color":
            return NAMED.get(value["fixedColor"], TEXT)
    return PALETTE[place % len(PALETTE)]


def is_dashed(panel: dict[str, Any], legend: str) -> bool:
    """Return whether an override draws the series with dashes."""
    return any(name == "custom.lineStyle" for name, _ in overrides(panel, legend))


def overrides(panel: dict[str, Any], name: str) -> list[tuple[str, Any]]:
    """Return the properties that are overridden for a series or a column."""
    found = []
    for each in panel["fieldConfig"]["overrides"]:
        matcher = each["matcher"]
        if matcher["id"] == "byName":
            is_meant = matcher["options"] == name
        else:
            is_meant = re.search(matcher["options"].strip("/"), name) is not None
        if is_meant:
            found += [(prop["id"], prop["value"]) for prop in each["properties"]]
    return found


def judged(thresholds: Any, value: float) -> str:
    """Return the colour that thresholds give a value."""
    colour = TEXT
    for step in thresholds["steps"]:
        if step["value"] is None or value >= step["value"]:
            colour = NAMED.get(step["color"], TEXT)
    return colour


def mapped(mappings: list[dict[str, Any]], value: float) -> tuple[str, str] | None:
    """Return text and colour of a value that a mapping has a word for."""
    for mapping in mappings:
        if mapping["type"] == "value" and value == value:
            found = mapping["options"].get(f"{value:g}")
            if found:
                return found["text"], NAMED.get(found.get("color", "text"), TEXT)
    return None
