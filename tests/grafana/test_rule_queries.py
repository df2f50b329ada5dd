"""Queries of rules and runbooks: they parse, and name what the manifest has."""

import pytest

from grafana.alerting.files import alerts
from grafana.alerting.recording import recordings
from tests.grafana.runbook import Runbook, runbooks
from tests.grafana.selectors import allowed_values, groupings, known_labels, selectors

LABELS = known_labels()
VALUES = allowed_values()
RULES = {
    **{each.full_name: each.expr for each in alerts()},
    **{each.record: each.expr for each in recordings()},
}
QUERIES = {
    **RULES,
    **{f"{each.name}-{place}": q for each in runbooks() for place, q in enumerate(each.queries)},
}


def wrong(expr: str) -> list[str]:
    """Return what a query names that is not there."""
    found = []
    for each in selectors(expr):
        if each.name is None:
            continue  # of all series at once
        if each.name not in LABELS:
            found.append(f"no series {each.name}")
            continue
        found += [
            f"{each.name} has no label {key}" for key in each.values.keys() - LABELS[each.name]
        ]
        for label, values in each.values.items():
            allowed = VALUES.get((each.name, label))
            if allowed is not None:
                found += [
                    f"{label} of {each.name} is never {v}" for v in values if v not in allowed
                ]
    for part, labels in groupings(expr):
        names = [each.name for each in selectors(part) if each.name in LABELS]
        there = frozenset().union(*(LABELS[name] for name in names))
        if names:
            found += [f"{label} is no label of {part}" for label in labels - there]
    return found


@pytest.mark.parametrize("name", QUERIES)
def test_queries_name_what_there_is(name: str) -> None:
    """Series, labels, values of closed labels, buckets, and what is summed or joined by."""
    assert wrong(QUERIES[name]) == []


@pytest.mark.parametrize(
    "expr",
    [
        "rate(narrowgate_request_total[5m])",
        'narrowgate_drift_state{slices="all"}',
        'narrowgate_requests_total{outcome=~"error|oops"}',
        'narrowgate_time_to_first_token_seconds_bucket{le="2.4"}',
        "sum without (reasons) (narrowgate_engine_restarts_total)",
        "narrowgate_engine_up and on (model, slice) narrowgate_drift_state",
    ],
)
def test_wrong_queries_are_noticed(expr: str) -> None:
    """One wrong name of each kind."""
    assert len(wrong(expr)) == 1


def test_levels_are_named() -> None:
    """A recorded name is level:metric:operations, and an alert that uses one finds it."""
    for each in recordings():
        level, metric, operations = each.record.split(":")
        assert level == "model"
        assert metric.startswith("narrowgate_")
        assert operations.startswith(("rate", "ratio_rate"))


def test_every_alert_has_a_runbook() -> None:
    """And every runbook an alert."""
    assert {each.name for each in runbooks()} == {each.full_name for each in alerts()}


@pytest.mark.parametrize("found", runbooks(), ids=lambda each: each.name)
def test_runbooks_are_written_alike(found: Runbook) -> None:
    """Meaning, impact, three queries, what to check, and one command that mends."""
    assert found.parts == ("Look", "Check", "Mend")
    assert "**Meaning.**" in found.text
    assert "**Impact.**" in found.text
    assert len(found.queries) == 3
    assert found.num_checks >= 2
    assert len(found.commands) == 1
    assert found.text.startswith(f"# {found.name}\n")
