"""A dashboard's JSON and the answers of a Prometheus to its queries."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.shadow.slices import ALL
from grafana.queries import substituted

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel; times in seconds since the epoch."""

    legend: str
    labels: Mapping[str, str]
    times: tuple[float, ...]
    values: tuple[float, ...]
    ref_id: str


@dataclass(frozen=True, slots=True)
class Span:
    """What a picture shows, in seconds since the epoch."""

    start: float
    end: float
    step_s: float

    @property
    def seconds(self) -> int:
        """Return its length."""
        return round(self.end - self.start)


class Prometheus:
    """Asks one server.

    Raises:
        httpx.HTTPError: from every method; it does not answer, or refuses the query.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)

    def lines_of(self, panel: Json, span: Span) -> list[Line]:
        """Return what the panel would show of that time."""
        return [line for target in panel.get("targets", []) for line in self._lines(target, span)]

    def _lines(self, target: Json, span: Span) -> Iterator[Line]:
        interval = max(15, 4 * round(span.step_s))
        expr = substituted(
            target["expr"],
            slice_name=ALL,  # as a dashboard opens
            rate_interval=f"{interval}s",
            range=f"{max(60, span.seconds)}s",
        )
        if target["instant"]:
            path, asked = "/api/v1/query", {"query": expr, "time": str(span.end)}
        else:
            path = "/api/v1/query_range"
            asked = {
                "query": expr,
                "start": str(span.start),
                "end": str(span.end),
                "step": str(span.step_s),
            }
        reply = self._client.get(path, params=asked)
        reply.raise_for_status()
        for found in reply.json()["data"]["result"]:
            points = found.get("values") or [found["value"]]
            yield Line(
                legend=_legend(target["legendFormat"], found["metric"]),
                labels=found["metric"],
                times=tuple(float(time) for time, _ in points),
                values=tuple(_number(value) for _, value in points),
                ref_id=target["refId"],
            )


def _number(text: str) -> float:
    return math.nan if text == "NaN" else float(text)


def _legend(template: str, labels: Mapping[str, str]) -> str:
    if template == "__auto":
        return ", ".join(value for name, value in labels.items() if name != "__name__") or "value"
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), template)
