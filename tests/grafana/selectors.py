"""What a query names: its selectors, and the labels that it joins and sums by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import promql_parser

from gateway.metrics.manifest import manifest
from grafana.alerting.recording import recordings

TARGET = frozenset({"job", "instance"})
PROMETHEUS_OWN = ("up", "scrape_samples_scraped", "scrape_duration_seconds")
PROCESS_OWN = ("process_start_time_seconds",)


@dataclass(frozen=True)
class Selector:
    """One selector of a query; a label's values are those that it asks for literally."""

    name: str | None
    values: Mapping[str, tuple[str, ...]]


def known_labels() -> dict[str, frozenset[str]]:
    """Return the labels of every series that a rule may name."""
    known = {name: TARGET for name in (*PROMETHEUS_OWN, *PROCESS_OWN)}
    known |= {each.record: frozenset({"job", "model"}) for each in recordings()}
    for row in manifest():
        labels = frozenset(label.name for label in row.labels) | TARGET
        if row.type == "histogram":
            known |= {f"{row.name}{part}": labels for part in ("_sum", "_count")}
            known[f"{row.name}_bucket"] = labels | {"le"}
        else:
            known[row.name] = labels
    return known


def allowed_values() -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the values of closed labels, by series and label; of ``le`` the boundaries."""
    allowed = {}
    for row in manifest():
        for label in row.labels:
            for part in ("", "_sum", "_count", "_bucket"):
                allowed[f"{row.name}{part}", label.name] = label.values
        allowed[f"{row.name}_bucket", "le"] = tuple(str(float(each)) for each in row.buckets)
    return {key: values for key, values in allowed.items() if values}


def selectors(expr: str) -> Iterator[Selector]:
    """Yield each selector of a query.

    Raises:
        ValueError: it is no PromQL.
    """
    for node in _nodes(promql_parser.parse(expr)):
        if isinstance(node, promql_parser.VectorSelector):
            matchers = {each.name: each.value for each in node.matchers.matchers}
            name = node.name or None
            literal = {key: tuple(value.split("|")) for key, value in matchers.items()}
            yield Selector(name, literal)


def groupings(expr: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the labels of each aggregation and each join, with what it is of."""
    for node in _nodes(promql_parser.parse(expr)):
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            yield node.prettify(), frozenset(modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and modifier is not None:
            if modifier.matching is None:
                continue
            for side in (node.lhs, node.rhs):
                yield side.prettify(), frozenset(modifier.matching.labels)


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if hasattr(node, name):
            yield from _nodes(getattr(node, name))
    if isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _nodes(argument)
