"""Tables: several instant queries, joined on the labels that they share."""

from collections.abc import Mapping

from grafana.colours import Json
from grafana.panel import Panel, Query, ref_id


def table(
    title: str,
    description: str,
    unit: str,
    no_value: str,
    *queries: Query,
    sorted_by: str,
    descending: bool = True,
    hidden: tuple[str, ...] = (),
    cells: Mapping[str, tuple[Json, ...]] | None = None,
    width: int = 24,
    height: int = 9,
) -> Panel:
    """Return a table with a column for each label and each query.

    A query without a column of its own is shown by its labels alone; ``cells`` are the properties
    of single columns.
    """
    headings = {f"Value #{ref_id(index)}": each for index, each in enumerate(queries)}
    if len(queries) == 1:
        headings = {"Value": queries[0]}
    without = [name for name, query in headings.items() if not query.column]
    named = {name: query.column for name, query in headings.items() if query.column}
    columns = {query.column: query.unit or unit for query in queries if query.column}
    return Panel(
        type="table",
        title=title,
        description=description,
        unit=unit,
        no_value=no_value,
        queries=queries,
        width=width,
        height=height,
        is_instant=True,
        options={
            "cellHeight": "sm",
            "footer": {"show": False, "reducer": [], "countRows": False},
            "showHeader": True,
            "sortBy": [{"displayName": sorted_by, "desc": descending}],
        },
        defaults={"custom": {"align": "auto", "cellOptions": {"type": "auto"}}},
        overrides=tuple(
            {
                "matcher": {"id": "byName", "options": column},
                "properties": [{"id": "unit", "value": each}, *(cells or {}).get(column, ())],
            }
            for column, each in columns.items()
        ),
        transformations=(
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {name: True for name in ("Time", *hidden, *without)},
                    "indexByName": {},
                    "renameByName": named,
                },
            },
        ),
    )


def coloured(
    mappings: tuple[Json, ...] = (), thresholds: tuple[Json, ...] = ()
) -> tuple[Json, ...]:
    """Return the properties of a column whose cells are filled with the colour of their value."""
    return (
        {"id": "custom.cellOptions", "value": {"type": "color-background", "mode": "basic"}},
        *([{"id": "mappings", "value": list(mappings)}] if mappings else []),
        *(
            [{"id": "thresholds", "value": {"mode": "absolute", "steps": list(thresholds)}}]
            if thresholds
            else []
        ),
    )
