"""Draws a dashboard from its own JSON and queries, where no Grafana is at hand."""

import math
import textwrap
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.pictures.asked import Json, Line, Prometheus, Span
from benchmarks.pictures.colours import (
    EDGE,
    FAINT,
    GROUND,
    PANEL,
    TEXT,
    is_dashed,
    judged,
    mapped,
    of_line,
)
from benchmarks.pictures.figures import shown
from benchmarks.pictures.table import draw_table

_COLUMNS = 24
_WIDTH_IN = 16.0
_ROW_IN = 0.38
_HEAD_IN = 0.5
_GAP_IN = 0.06
_DPI = 100
_TITLE_IN = 0.32
_LEGEND_LINES = 6


def draw(dashboard: Json, prometheus: Prometheus, span: Span, file: Path) -> None:
    """Write a picture of a dashboard over a time.

    Raises:
        httpx.HTTPError: the server does not answer, or refuses a query.
    """
    matplotlib.use("agg")
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    height = _HEAD_IN + rows * _ROW_IN
    figure = Figure(figsize=(_WIDTH_IN, height), dpi=_DPI, facecolor=GROUND)
    moment = datetime.fromtimestamp(span.end, UTC).strftime("%Y-%m-%d %H:%M UTC")
    figure.text(0.006, 1 - 0.3 / height, dashboard["title"], color=TEXT, size=15, weight="bold")
    words = f"{span.seconds / 60:.0f} minutes until {moment}"
    figure.text(0.994, 1 - 0.3 / height, words, color=FAINT, size=9, ha="right")
    for panel in panels:
        axes = _place(figure, panel["gridPos"], height)
        if panel["type"] == "row":
            axes.set_axis_off()
            axes.text(0.002, 0.4, panel["title"], color=TEXT, size=11, weight="bold", va="center")
            continue
        _frame(axes, panel)
        lines = [line for line in prometheus.lines_of(panel, span) if _has_values(line)]
        if lines:
            _KINDS[panel["type"]](axes, panel, lines, span)
        else:
            empty = textwrap.fill(panel["fieldConfig"]["defaults"]["noValue"], 40)
            axes.text(0.5, 0.42, empty, color=FAINT, size=9, ha="center", va="center")
    figure.savefig(file, facecolor=GROUND)


def _has_values(line: Line) -> bool:
    return any(math.isfinite(value) for value in line.values)


def _place(figure: Figure, grid: Mapping[str, int], height: float) -> Axes:
    left = grid["x"] / _COLUMNS * _WIDTH_IN + _GAP_IN
    width = grid["w"] / _COLUMNS * _WIDTH_IN - 2 * _GAP_IN
    top = height - _HEAD_IN - grid["y"] * _ROW_IN - _GAP_IN
    tall = grid["h"] * _ROW_IN - 2 * _GAP_IN
    box = (left / _WIDTH_IN, (top - tall) / height, width / _WIDTH_IN, tall / height)
    return figure.add_axes(box)


def _frame(axes: Axes, panel: Json) -> None:
    axes.set_facecolor(PANEL)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    for spine in axes.spines.values():
        spine.set_color(EDGE)
    axes.annotate(
        panel["title"],
        (0, 1),
        (6, -6),
        xycoords="axes fraction",
        textcoords="offset points",
        color=TEXT,
        size=9,
        weight="medium",
        va="top",
        annotation_clip=False,
    )


def _inches(axes: Axes) -> tuple[float, float]:
    figure, box = axes.get_figure(root=True), axes.get_position()
    if figure is None:
        raise RuntimeError("the axes are on no figure")
    wide, tall = figure.get_size_inches()
    return box.width * wide, box.height * tall


def _inner(axes: Axes, left: float, bottom: float, right: float = 0.12) -> Axes:
    """Return axes within a panel, below its title; margins in inches."""
    wide, tall = _inches(axes)
    box = (left / wide, bottom / tall, 1 - (left + right) / wide, 1 - (bottom + _TITLE_IN) / tall)
    found: Axes = axes.inset_axes(box)
    found.set_facecolor(PANEL)
    return found


def _draw_lines(axes: Axes, panel: Json, lines: list[Line], span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    lines = sorted(lines, key=lambda line: -_last(line))
    num_told = min(len(lines), _LEGEND_LINES)
    plot = _inner(axes, left=0.75, bottom=0.34 + 0.17 * num_told)
    stacks = custom["stacking"]["mode"] == "normal"
    below: dict[float, float] = {}
    for place, line in enumerate(lines):
        colour = of_line(panel, line.legend, place)
        style = "--" if is_dashed(panel, line.legend) else "-"
        times, values = list(line.times), list(line.values)
        if stacks:
            bottoms = [below.get(time, 0.0) for time in times]
            values = [low + value for low, value in zip(bottoms, values, strict=True)]
            below |= dict(zip(times, values, strict=True))
            plot.fill_between(times, bottoms, values, color=colour, alpha=0.25, linewidth=0)
        plot.plot(times, values, style, color=colour, linewidth=1.2, marker=_mark(times, span))
    _scale(plot, defaults, custom)
    plot.set_xlim(span.start, span.end)
    _axis(plot, unit, span)
    for place, line in enumerate(lines[:num_told]):
        more = (
            f"  (+{len(lines) - num_told} more)" if place == num_told - 1 < len(lines) - 1 else ""
        )
        finite = [value for value in line.values if math.isfinite(value)]
        _tell(
            axes,
            f"{_cut(line.legend)}{more}",
            f"last {shown(_last(line), unit)}   max {shown(max(finite), unit)}",
            of_line(panel, line.legend, place),
            0.10 + 0.17 * (num_told - 1 - place),
        )


def _mark(times: list[float], span: Span) -> str:
    """Return a dot for what would be no line."""
    return "." if len(times) < 3 or times[-1] - times[0] < 3 * span.step_s else ""


def _scale(plot: Axes, defaults: Json, custom: Json) -> None:
    if custom["scaleDistribution"]["type"] == "log":
        plot.set_yscale("log")
    low, high = plot.get_ylim()
    low = min(low, defaults["min"]) if "min" in defaults else low
    plot.set_ylim(defaults.get("min", low), defaults.get("max", high))


def _axis(plot: Axes, unit: str, span: Span) -> None:
    ticks = [span.start + span.seconds * part for part in (0.1, 0.5, 0.9)]
    words = [datetime.fromtimestamp(tick, UTC).strftime("%H:%M:%S") for tick in ticks]
    plot.set_xticks(ticks, words)
    plot.yaxis.set_major_formatter(lambda value, _: shown(value, unit))
    plot.yaxis.set_minor_formatter(lambda value, _: "")
    plot.tick_params(colors=FAINT, labelsize=7, length=0)
    plot.grid(True, color=EDGE, linewidth=0.6)
    plot.locator_params(axis="y", nbins=5) if plot.get_yscale() == "linear" else None
    for spine in plot.spines.values():
        spine.set_visible(False)


def _tell(axes: Axes, name: str, figures: str, colour: str, bottom_in: float) -> None:
    wide, tall = _inches(axes)
    y = bottom_in / tall
    axes.text(0.10 / wide, y, "━", color=colour, size=8, va="center")
    axes.text(0.32 / wide, y, name, color=TEXT, size=7.5, va="center")
    axes.text(1 - 0.1 / wide, y, figures, color=FAINT, size=7.5, va="center", ha="right")


def _draw_stat(axes: Axes, panel: Json, lines: list[Line], span: Span) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    is_filled = panel["options"]["colorMode"] == "background"
    lines = sorted(lines, key=lambda line: line.legend)[:6]
    wide, tall = _inches(axes)
    for place, line in enumerate(lines):
        value = _last(line)
        word, colour = mapped(defaults["mappings"], value) or (
            shown(value, defaults["unit"]),
            judged(defaults["thresholds"], value),
        )
        slot = (1 - 0.36 / tall) / len(lines)
        y = 1 - 0.36 / tall - slot * (place + 0.5)
        size = min(22.0, 72 * slot * tall * 0.5, 72 * wide / max(4, len(word)) * 0.8)
        if is_filled:
            box = (0.01, y - slot * 0.45, 0.98, slot * 0.9)
            axes.add_patch(matplotlib.patches.Rectangle(box[:2], *box[2:], color=colour))
            colour = GROUND
        if len(lines) > 1:
            axes.text(
                0.04,
                y,
                _cut(line.legend),
                color=GROUND if is_filled else FAINT,
                size=8,
                va="center",
            )
            axes.text(
                0.96, y, word, color=colour, size=size, va="center", ha="right", weight="bold"
            )
        else:
            axes.text(
                0.5, y, word, color=colour, size=size, va="center", ha="center", weight="bold"
            )


def _draw_states(axes: Axes, panel: Json, lines: list[Line], span: Span) -> None:
    mappings = panel["fieldConfig"]["defaults"]["mappings"]
    lines = sorted(lines, key=lambda line: line.legend)
    plot = _inner(axes, left=2.4, bottom=0.34)
    for place, line in enumerate(lines):
        for time, value in zip(line.times, line.values, strict=True):
            _, colour = mapped(mappings, value) or ("", FAINT)
            plot.barh(-place, span.step_s, left=time, height=0.8, color=colour, alpha=0.85)
        found = mapped(mappings, _last(line))
        if found:
            plot.text(
                line.times[-1],
                -place,
                f"{found[0]} ",
                color=GROUND,
                size=7.5,
                va="center",
                ha="right",
                weight="bold",
            )
    plot.set_xlim(span.start, span.end)
    _axis(plot, "none", span)
    plot.set_yticks([-place for place in range(len(lines))], [_cut(x.legend, 34) for x in lines])
    plot.grid(False)


def _last(line: Line) -> float:
    return next((value for value in reversed(line.values) if math.isfinite(value)), math.nan)


def _cut(text: str, length: int = 46) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _table(axes: Axes, panel: Json, lines: list[Line], span: Span) -> None:
    draw_table(axes, panel, lines, *_inches(axes))


_KINDS: Mapping[str, Callable[[Axes, Any, list[Line], Span], None]] = MappingProxyType(
    {
        "timeseries": _draw_lines,
        "stat": _draw_stat,
        "state-timeline": _draw_states,
        "table": _table,
    }
)
