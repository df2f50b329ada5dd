"""What can be chosen at the top of a dashboard."""

from collections.abc import Mapping

from gateway.metrics.family import FIRST_TOKEN_S, INTER_TOKEN_S
from grafana.colours import Json
from grafana.panel import DATASOURCE
from grafana.query import narrowed, series

ALL = ".*"
LABEL_VALUES = 1
"""The kind of the query in Grafana's editor of variables."""


def common() -> tuple[Json, ...]:
    """Return the variables of every dashboard: data source, instance, model, variant."""
    return (
        {
            "name": "datasource",
            "label": "Data source",
            "description": "The Prometheus that scrapes the gateways.",
            "type": "datasource",
            "query": "prometheus",
            "regex": "",
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "refresh": 1,
            "current": {"selected": False, "text": "default", "value": "default"},
            "options": [],
        },
        _labels("instance", "Gateway", "The gateways to look at.", narrowed("build_info")),
        _labels(
            "model", "Model", "The names that clients send.", narrowed("model_state", "instance")
        ),
        _labels(
            "variant",
            "Variant",
            "Ways in which a model is served: full, or a recipe's name.",
            narrowed("model_state", "instance", "model"),
        ),
    )


def slices() -> Json:
    """Return the variable of slices of traffic; all traffic at first."""
    what = "Parts of the traffic; all is the whole."
    found = _labels("slice", "Slice", what, series("drift_state"))
    return {**found, "current": {"selected": True, "text": ["all"], "value": ["all"]}}


def first_token_limit() -> Json:
    """Return the variable of the time in which the first token should come."""
    names = {"250 ms": 0.25, "500 ms": 0.5, "1 s": 1.0, "2.5 s": 2.5, "5 s": 5.0, "10 s": 10.0}
    what = "Streams should begin within this time."
    return _limit("ttft_slo", "First token within", what, names, FIRST_TOKEN_S, "1 s")


def inter_token_limit() -> Json:
    """Return the variable of the time in which each further token should come."""
    names = {"25 ms": 0.025, "50 ms": 0.05, "100 ms": 0.1, "200 ms": 0.2, "500 ms": 0.5}
    what = "Each further piece of a stream should come within this time."
    return _limit("itl_slo", "Next token within", what, names, INTER_TOKEN_S, "100 ms")


def _labels(name: str, label: str, description: str, selector: str) -> Json:
    query = f"label_values({selector}, {name})"
    return {
        "name": name,
        "label": label,
        "description": description,
        "type": "query",
        "datasource": dict(DATASOURCE),
        "query": {"qryType": LABEL_VALUES, "query": query, "refId": "variable"},
        "regex": "",
        "hide": 0,
        "includeAll": True,
        "allValue": ALL,
        "multi": True,
        "refresh": 2,
        "sort": 1,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }


def _limit(
    name: str,
    label: str,
    description: str,
    names: Mapping[str, float],
    buckets: tuple[float, ...],
    chosen: str,
) -> Json:
    """Return a choice of bucket bounds, spelled as the exposition spells them.

    Raises:
        ValueError: a bound is none of the histogram's.
    """
    wrong = [str(bound) for bound in names.values() if bound not in buckets]
    if wrong:
        raise ValueError(f"variable {name}: {', '.join(wrong)} is no bucket; take one of {buckets}")
    return {
        "name": name,
        "label": label,
        "description": description,
        "type": "custom",
        "query": ", ".join(f"{text} : {bound}" for text, bound in names.items()),
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "current": {"selected": True, "text": chosen, "value": str(names[chosen])},
        "options": [
            {"selected": text == chosen, "text": text, "value": str(bound)}
            for text, bound in names.items()
        ],
    }
