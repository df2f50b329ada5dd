"""Every query of every panel, held against the manifest."""

import re

import promql_parser as promql
import pytest

from gateway.metrics.manifest import manifest
from grafana.alerting.files import alerts
from grafana.alerting.recording import recordings
from grafana.catalogue import dashboards
from grafana.panel import Panel, Query
from grafana.queries import NOT_SHOWN, PanelQuery, all_queries, substituted
from grafana.query import UnknownMetric, series
from tests.grafana.dimension import SHOWN
from tests.grafana.promql import Defect, check, labels_of

LIFETIME = {("narrowgate-shadow", "Unaccounted")}
"""Panels that compare lifetime counts of one scrape, where a gain would be an estimate."""

CHOSEN = {"model": "MODEL", "variant": "VARIANT", "instance": "INSTANCE"}
QUERIES = [
    pytest.param(query, id=f"{query.dashboard}/{query.panel}/{number}")
    for number, query in enumerate(all_queries())
]
PANELS = [
    pytest.param(panel, id=f"{dashboard.uid}/{panel.title}")
    for dashboard in dashboards()
    for panel in dashboard.panels()
]


def sent(expr: str) -> str:
    """Return an expression with recognizable choices."""
    return substituted(expr, **CHOSEN)


@pytest.mark.parametrize("query", QUERIES)
def test_query(query: PanelQuery) -> None:
    """It parses, names what exists, keeps PromQL's rules, and is in the unit of its panel."""
    value = check(sent(query.expr))
    assert value.is_lifetime == ((query.dashboard, query.panel) in LIFETIME)
    shown = SHOWN[query.unit]
    assert value.dimension in shown or value.dimension.averaged() in shown, value.dimension


@pytest.mark.parametrize("query", QUERIES)
def test_window(query: PanelQuery) -> None:
    """Windows are Grafana's: the interval's in a course, the whole range's in a number of now."""
    windows = set(re.findall(r"\[([^\]]*)\]", query.expr))
    assert windows <= {"$__range" if query.kind == "instant" else "$__rate_interval"}


@pytest.mark.parametrize("panel", PANELS)
def test_legend(panel: Panel) -> None:
    """A legend names labels that its query keeps, and tells its series apart."""
    for query in panel.queries:
        kept = check(sent(query.expr)).labels
        named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
        assert named <= kept
        if panel.type != "table":
            assert query.legend
            assert named == kept - {"job"}


@pytest.mark.parametrize("panel", PANELS)
def test_description_names_every_metric(panel: Panel) -> None:
    """The description names each metric that the panel asks for."""
    joined = " ".join(query.expr for query in panel.queries)
    names = set(re.findall(r"\b((?:narrowgate|process)_\w+)", joined))
    for name in names:
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        if family == "narrowgate_build_info" and "process_" in joined:
            continue
        assert family in panel.description


def test_every_metric_is_shown_or_known_not_to_be() -> None:
    """A family is in a panel, a mark or a rule, or on the list of those that are left out."""
    marks = (m["expr"] for d in dashboards() for m in d.json()["annotations"]["list"])
    rules = (f"{each.expr} {each.description}" for each in alerts())
    records = (each.expr for each in recordings())
    text = " ".join((*(query.expr for query in all_queries()), *marks, *rules, *records))
    asked = set(re.findall(r"narrowgate_\w+", text))
    silent = {
        row.name
        for row in manifest()
        if not asked & {row.name, *(f"{row.name}_{part}" for part in ("bucket", "sum", "count"))}
    }
    assert silent == set(NOT_SHOWN)


def test_annotations() -> None:
    """The marks' queries hold what queries of panels hold, and their texts name kept labels."""
    for dashboard in dashboards():
        for mark in dashboard.json()["annotations"]["list"]:
            value = check(sent(mark["expr"]))
            assert not value.is_lifetime
            assert set(re.findall(r"\{\{(\w+)\}\}", mark["textFormat"])) == value.labels


def test_variables_are_labels_of_metrics() -> None:
    """What a variable asks Prometheus for are values of a label of a metric of the manifest."""
    for dashboard in dashboards():
        for variable in dashboard.json()["templating"]["list"]:
            if variable["type"] != "query":
                continue
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert found
            chosen = promql.parse(sent(found.group(1)))
            assert isinstance(chosen, promql.VectorSelector)
            assert chosen.name
            labels = labels_of(chosen.name)
            assert {matcher.name for matcher in chosen.matchers.matchers} <= labels
            assert found.group(2) in labels


WRONG = {
    "no such metric": ('narrowgate_nothing{instance=~"INSTANCE"}', "no metric"),
    "no such label": ('narrowgate_build_info{instance=~"INSTANCE", colour="red"}', "no label"),
    "no such value": (
        'rate(narrowgate_variant_swaps_total{instance=~"INSTANCE", model=~"MODEL", '
        'result="x"}[1m])',
        "never x",
    ),
    "no such bucket": (
        'sum by (model) (rate(narrowgate_queue_seconds_bucket{instance=~"INSTANCE", '
        'model=~"MODEL", le="0.3"}[1m]))',
        "never 0.3",
    ),
    "variable left out": ('narrowgate_engine_up{instance=~"INSTANCE", model=~"MODEL"}', "variant"),
    "gauge under rate": ('rate(process_open_fds{instance=~"INSTANCE"}[1m])', "gauge"),
    "lost le": (
        "histogram_quantile(0.5, sum by (model) (rate(narrowgate_queue_seconds_bucket{"
        'instance=~"INSTANCE", model=~"MODEL"}[1m])))',
        "adds up buckets",
    ),
    "division by nothing": (
        'process_open_fds{instance=~"INSTANCE"} / process_max_fds{instance=~"INSTANCE"}',
        "divisor",
    ),
    "apples and pears": (
        'process_open_fds{instance=~"INSTANCE"} + '
        'process_resident_memory_bytes{instance=~"INSTANCE"}',
        "bytes",
    ),
    "root of no square": (
        'sqrt(process_resident_memory_bytes{instance=~"INSTANCE"})',
        "the root of bytes",
    ),
    "by what is gone": (
        'sum by (model) (sum by (instance) (narrowgate_engine_up{instance=~"INSTANCE", '
        'model=~"MODEL", variant=~"VARIANT"}))',
        "not there",
    ),
    "sides that never match": (
        'sum by (instance) (process_open_fds{instance=~"INSTANCE"}) / '
        '(process_max_fds{instance=~"INSTANCE"} > 0)',
        "never match",
    ),
    "no PromQL": ("sum by (", "sum by ("),
}


@pytest.mark.parametrize("name", WRONG)
def test_check_sees(name: str) -> None:
    """The check of queries sees each kind of mistake."""
    expr, message = WRONG[name]
    with pytest.raises(Defect, match=re.escape(message)):
        check(expr)


def test_lifetime_counts_are_seen() -> None:
    """A counter that nobody took the gain of is known as one, however it is wrapped."""
    counter = 'narrowgate_rate_store_failures_total{instance=~"INSTANCE"}'
    assert check(f"sum by (instance) ({counter})").is_lifetime
    assert check(f"{counter} / ({counter} > 0)").is_lifetime
    assert not check(
        f"({counter} unless {counter} offset 1m) or increase({counter}[1m])"
    ).is_lifetime
    assert check(f"{counter} unless {counter}").is_lifetime


def test_unknown_names_are_refused_where_they_are_written() -> None:
    """A metric or label that the manifest lacks stops the generation, with its name."""
    with pytest.raises(UnknownMetric, match="narrowgate_nothing"):
        series("nothing")
    with pytest.raises(UnknownMetric, match="colour"):
        series("requests_total", 'colour="red"')


def test_unknown_variable_is_refused() -> None:
    """A variable that no dashboard has is named."""
    with pytest.raises(ValueError, match="nowhere"):
        substituted("up{job=$nowhere}")


def test_query_is_substituted_as_grafana_does() -> None:
    """Choices and windows take the variables' places."""
    query = Query(series("shadow_scored_total"))
    expr = substituted(f"increase({query.expr}[$__range])", model="a|b", range="10m")
    wanted = 'increase(narrowgate_shadow_scored_total{instance=~".*", model=~"a|b"}[10m])'
    assert expr == wanted
