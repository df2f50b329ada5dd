"""The kinds of panels that the dashboards are made of."""

from grafana.colours import LINES, OUTCOMES, Json, judged_by_nobody, none_is
from grafana.panel import Panel, Query

_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}


def tile(
    title: str,
    description: str,
    unit: str,
    no_value: str,
    *queries: Query,
    width: int = 4,
    height: int = 4,
    decimals: int | None = None,
    thresholds: tuple[Json, ...] = (),
    mappings: tuple[Json, ...] = (),
    is_instant: bool = True,
    leads_to: str = "",
) -> Panel:
    """Return a large number: of now, or (not instant) the last of a line drawn behind it."""
    return Panel(
        type="stat",
        title=title,
        description=description,
        unit=unit,
        no_value=no_value,
        queries=queries,
        width=width,
        height=height,
        is_instant=is_instant,
        leads_to=leads_to,
        options={
            "colorMode": "background" if mappings else "value",
            "graphMode": "none" if is_instant else "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": dict(_LAST),
            "showPercentChange": False,
            "textMode": "value_and_name",
            "wideLayout": True,
        },
        defaults={
            **({} if decimals is None else {"decimals": decimals}),
            "color": {"mode": "thresholds"},
            "mappings": [*mappings, none_is(no_value)],
            "thresholds": _steps(thresholds or judged_by_nobody()),
        },
    )


def lines(
    title: str,
    description: str,
    unit: str,
    no_value: str,
    *queries: Query,
    width: int = 8,
    height: int = 8,
    lowest: float | None = 0,
    highest: float | None = None,
    stacked: bool = False,
    logarithmic: bool = False,
    dashed: tuple[str, ...] = (),
    leads_to: str = "",
) -> Panel:
    """Return a course over time; ``dashed`` are names of series (regular expressions)."""
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 25 if stacked else 0,
        "showPoints": "auto",
        "spanNulls": False,
        "scaleDistribution": {"type": "log", "log": 10} if logarithmic else {"type": "linear"},
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    bounds = {"min": None if logarithmic else lowest, "max": highest}
    return Panel(
        type="timeseries",
        title=title,
        description=description,
        unit=unit,
        no_value=no_value,
        queries=queries,
        width=width,
        height=height,
        leads_to=leads_to,
        options={
            "legend": {
                "calcs": ["lastNotNull", "max"],
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        defaults={
            **{name: bound for name, bound in bounds.items() if bound is not None},
            "color": {"mode": "palette-classic-by-name"},
            "custom": custom,
        },
        overrides=(*_colours(queries), *(_dashed(name) for name in dashed)),
    )


def timeline(
    title: str,
    description: str,
    no_value: str,
    *queries: Query,
    mappings: tuple[Json, ...],
    width: int = 12,
    height: int = 8,
) -> Panel:
    """Return states over time, a row a series."""
    return Panel(
        type="state-timeline",
        title=title,
        description=description,
        unit="none",
        no_value=no_value,
        queries=queries,
        width=width,
        height=height,
        options={
            "alignValue": "left",
            "legend": {
                "calcs": [],
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": False,
            },
            "mergeValues": True,
            "rowHeight": 0.85,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        defaults={
            "color": {"mode": "thresholds"},
            "custom": {"fillOpacity": 80, "lineWidth": 0},
            "mappings": list(mappings),
            "thresholds": _steps(judged_by_nobody()),
        },
    )


def _colours(queries: tuple[Query, ...]) -> tuple[Json, ...]:
    legends = [query.legend for query in queries]
    words = {word: colour for word, colour in LINES.items() if any(word in x for x in legends)}
    names = OUTCOMES if "{{outcome}}" in legends else {}
    return (
        *(_fixed("byName", name, colour) for name, colour in names.items()),
        *(_fixed("byRegexp", f"/{word}/", colour) for word, colour in words.items()),
    )


def _fixed(matcher: str, pattern: str, colour: str) -> Json:
    return {
        "matcher": {"id": matcher, "options": pattern},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
    }


def _dashed(name: str) -> Json:
    style = {"fill": "dash", "dash": [8, 8]}
    return {
        "matcher": {"id": "byRegexp", "options": name},
        "properties": [{"id": "custom.lineStyle", "value": style}],
    }


def _steps(steps: tuple[Json, ...]) -> Json:
    return {"mode": "absolute", "steps": list(steps)}
