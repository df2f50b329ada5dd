"""Draws a table of a dashboard: instant queries, joined on the labels that they share."""

import math
import textwrap
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from benchmarks.pictures.asked import Json, Line
from benchmarks.pictures.colours import FAINT, GROUND, NAMED, TEXT, judged, mapped, overrides
from benchmarks.pictures.figures import shown

_HEAD_IN = 0.62
_LINE_IN = 0.24
_LONGEST = 44


@dataclass(slots=True)
class _Row:
    labels: dict[str, str]
    values: dict[str, float] = field(default_factory=dict)


def draw_table(axes: Axes, panel: Json, lines: list[Line], wide: float, tall: float) -> None:
    """Fill a panel of ``wide`` times ``tall`` inches, as many rows as it holds."""
    organize = next(each for each in panel["transformations"] if each["id"] == "organize")
    hidden = {name for name, is_out in organize["options"]["excludeByName"].items() if is_out}
    names = _names(panel, organize["options"]["renameByName"])
    rows = _sorted(_merged(lines), panel, names)
    labels = [x for x in dict.fromkeys(n for row in rows for n in row.labels) if x not in hidden]
    columns = [*labels, *names.values()]
    words = [_words(row, labels, names, panel) for row in rows]
    room = int((tall - _HEAD_IN) / _LINE_IN)
    sizes = [
        max(len(name), *(len(line[at][0]) for line in words)) for at, name in enumerate(columns)
    ]
    edges = [sum(sizes[:at]) + 2 * at for at in range(len(sizes) + 1)]
    scale = min(1.0, 0.98 * wide / (edges[-1] * 0.075)) if edges[-1] else 1.0
    places = [0.01 + 0.98 * edge / edges[-1] for edge in edges]
    for at, name in enumerate(columns):
        y = 1 - (_HEAD_IN - 0.12) / tall
        axes.text(places[at], y, name, color=FAINT, size=8 * scale, va="center", weight="bold")
    for line, cells in enumerate(words[:room]):
        y = 1 - (_HEAD_IN + (line + 0.4) * _LINE_IN) / tall
        for at, (text, fill) in enumerate(cells):
            if fill:
                box = (places[at] - 0.003, y - 0.45 * _LINE_IN / tall)
                size = (places[at + 1] - places[at] - 0.004, 0.9 * _LINE_IN / tall)
                axes.add_patch(Rectangle(box, *size, color=fill))
            colour = GROUND if fill else TEXT
            axes.text(places[at], y, text, color=colour, size=8 * scale, va="center")


def _names(panel: Json, renamed: dict[str, str]) -> dict[str, str]:
    """Return the columns of values by the letter of their query."""
    only = len(panel["targets"]) == 1
    found = {}
    for target in panel["targets"]:
        key = "Value" if only else f"Value #{target['refId']}"
        if key in renamed:
            found[target["refId"]] = renamed[key]
    return found


def _merged(lines: list[Line]) -> list[_Row]:
    rows: list[_Row] = []
    for line in lines:
        labels = {name: value for name, value in line.labels.items() if name != "__name__"}
        found = [row for row in rows if line.ref_id not in row.values and _agree(row, labels)]
        if not found:
            rows.append(_Row(labels, {line.ref_id: line.values[-1]}))
        for row in found:
            row.labels |= labels
            row.values[line.ref_id] = line.values[-1]
    return rows


def _agree(row: _Row, labels: dict[str, str]) -> bool:
    shared = row.labels.keys() & labels.keys()
    return bool(shared) and all(row.labels[name] == labels[name] for name in shared)


def _sorted(rows: list[_Row], panel: Json, names: dict[str, str]) -> list[_Row]:
    (order,) = panel["options"]["sortBy"]
    ref = next((ref for ref, name in names.items() if name == order["displayName"]), None)
    if ref is None:
        return sorted(rows, key=lambda row: row.labels.get(order["displayName"], ""))
    sign = -1 if order["desc"] else 1

    def key(row: _Row) -> tuple[bool, float]:
        value = row.values.get(ref, math.nan)
        return math.isnan(value), sign * value

    return sorted(rows, key=key)


def _words(
    row: _Row, labels: list[str], names: dict[str, str], panel: Json
) -> list[tuple[str, str]]:
    """Return the text of each cell, and the colour that fills it, if one does."""
    told = [(textwrap.shorten(row.labels.get(name, ""), _LONGEST), "") for name in labels]
    return told + [_cell(row.values.get(ref, math.nan), name, panel) for ref, name in names.items()]


def _cell(value: float, name: str, panel: Json) -> tuple[str, str]:
    found: dict[str, Any] = dict(overrides(panel, name))
    text = shown(value, found.get("unit", panel["fieldConfig"]["defaults"]["unit"]))
    if "mappings" in found:
        word = mapped(found["mappings"], value)
        if word is not None:
            return word
    if "thresholds" in found and not math.isnan(value):
        colour = judged(found["thresholds"], value)
        return text, "" if colour == NAMED["text"] else colour
    return text, ""
