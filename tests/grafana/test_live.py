"""Every query against a real Prometheus that watched a real gateway under known traffic."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from statistics import fmean
from typing import Any

import pytest

from gateway.metrics.family import FIRST_TOKEN_S, INTER_TOKEN_S
from grafana.alerting.files import alerts
from grafana.alerting.recording import recordings
from grafana.queries import PanelQuery, all_queries, substituted
from tests.grafana.runbook import runbooks
from tests.grafana.scene import NUM_HELD, Scene, scene

pytestmark = pytest.mark.alone  # its clients and the gateway compare their clocks

QUERIES = list(all_queries())
SHARE = 0.05
"""By how much a panel may differ from what clients saw."""

_SLOW = "the full model would answer each stream at its pace; their queries are held by promtool"
SILENT = {
    "Failed checks of both answers": _SLOW,
    "Length of both answers": _SLOW,
    "First divergence": "the fake reference finds the very same tokens the likeliest",
}
"""Panels that this traffic leaves empty, and why."""
EXACT = "narrowgate_fidelity_kl_bound_nats_total"
"""Here scores are by top-k, and only the full model's noise floor, 0, is exact; promtool holds what
is made of this."""

KEPT_TEXTS = "narrowgate_fixed_text_"
"""The artifacts of these engines keep no texts; promtool holds what is made of them."""

RANGES = {
    "none": (0, 5),  # states, and the 1 of an info
    "percentunit": (0, 1),
    "s": (0, 60),
    "bytes": (0, 2**40),
    "reqps": (0, 100),
    "cps": (0, 100),
    "short": (-100, 1000),
    "suffix: bits": (1, 32),
    "suffix: cores": (0, 4),
    "suffix: nats": (-1, 1),
    "suffix: requests": (0, 100),
    "suffix: times": (0.1, 20),
    "suffix: tokens": (0, 4096),
    "suffix: tokens/s": (0, 5000),
}
ABOVE_ONE = {"Worst slice", "Mean over tolerance", "Slices, worst first"}
"""Shares of a tolerance, which a broken variant exceeds."""
WHILE_HELD = {"Longest silence"}
"""Panels that show a moment, and something only while requests run."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Return the scene after its traffic."""
    with scene(tmp_path_factory.mktemp("live")) as found:
        yield found


def panel(seen: Scene, title: str, *, index: int = 0, board: str = "", at: float = 0) -> Any:
    """Return a panel's samples over the whole window, as one evaluation at its end."""
    found = [q for q in QUERIES if q.panel == title and q.dashboard.endswith(board)]
    expr = substituted(found[index].expr, rate_interval=seen.window, range=seen.window)
    return seen.prometheus.query(expr, at or seen.ended_at)


def by(samples: list[dict[str, Any]], label: str) -> dict[str, float]:
    """Return values by a label."""
    return {each["metric"].get(label, ""): float(each["value"][1]) for each in samples}


def near(value: float) -> Any:
    """Return what is equal to a value that clients saw."""
    return pytest.approx(value, rel=SHARE)


def values(seen: Scene, query: PanelQuery) -> list[float]:
    """Return every value of a query as a dashboard draws it; NaN is drawn as nothing."""
    expr = substituted(query.expr, rate_interval="5s", range=seen.window)
    if query.kind == "range":
        lines = seen.prometheus.query_range(expr, seen.began_at, seen.ended_at)
        found = [float(value) for line in lines for _, value in line["values"]]
    else:
        at = seen.held_at if query.panel in WHILE_HELD else seen.ended_at
        found = [float(each["value"][1]) for each in seen.prometheus.query(expr, at)]
    return [value for value in found if not math.isnan(value)]


def _name(query: PanelQuery) -> str:
    return f"{query.dashboard.removeprefix('narrowgate-')}: {query.panel}"


@pytest.mark.parametrize("query", QUERIES, ids=_name)
def test_panels_show_what_can_be(seen: Scene, query: PanelQuery) -> None:
    """Something finite in the range of the panel's unit; nothing only where that is right."""
    found = values(seen, query)
    if query.panel in SILENT or KEPT_TEXTS in query.expr:
        assert not found, f"no longer empty: take {query.panel!r} off the list"
        return
    if EXACT in query.expr:
        assert not any(found)
        return
    assert found, query.expr
    low, high = RANGES[query.unit]
    if query.panel in ABOVE_ONE and query.unit == "percentunit":
        high = 100
    assert all(low <= value <= high for value in found), (min(found), max(found), query.expr)


def test_the_list_of_silent_panels_is_needed() -> None:
    """Each is a panel that exists."""
    assert SILENT.keys() <= {query.panel for query in QUERIES}


def test_requests_are_those_of_the_clients(seen: Scene) -> None:
    """Each outcome, at both dashboards; what was turned away; who left; what was drawn."""
    truth = seen.truth
    seconds = seen.ended_at - seen.began_at
    outcomes = {outcome: truth.of(outcome) for _, outcome in truth.outcomes}
    for board in ("overview", "gateway"):
        rates = by(panel(seen, "Requests", board=board), "outcome")
        assert {name: rate * seconds for name, rate in rates.items()} == near_all(outcomes)
    turned = by(panel(seen, "Turned away", board="gateway"), "reason")
    assert turned["queue_full"] * seconds == near(truth.of("shed"))
    left = by(panel(seen, "Clients that left"), "phase")
    assert left["decode"] * seconds == near(truth.of("client_abort"))
    drawn = seen.prometheus.value(
        f'increase(narrowgate_shadow_candidates_total{{model="tiny"}}[{seen.window}])',
        seen.ended_at,
    )
    assert drawn == near(truth.of("ok", "error", "timeout", "client_abort", model="tiny"))


def near_all(wanted: dict[str, int]) -> Any:
    """Return what is equal to counts that clients saw."""
    return pytest.approx(wanted, rel=SHARE)


def test_tokens_are_those_of_the_clients(seen: Scene) -> None:
    """Generated and prompt tokens a second."""
    seconds = seen.ended_at - seen.began_at
    generated = by(panel(seen, "Tokens"), "model")["tiny"]
    prompt = by(panel(seen, "Tokens", index=1), "model")["tiny"]
    assert generated * seconds == near(seen.truth.num_generated)
    assert prompt * seconds == near(seen.truth.num_prompt)


def test_times_are_those_of_the_clients(seen: Scene) -> None:
    """Means within 5 %, quantiles in the bucket of the clients' own, shares of the objectives."""
    first, inter = seen.truth.first_token_s, sorted(seen.truth.inter_token_s)
    for name, times in (("time_to_first_token", first), ("inter_token_latency", inter)):
        total, number = (
            f'sum(rate(narrowgate_{name}_seconds_{part}{{model="tiny"}}[{seen.window}]))'
            for part in ("sum", "count")
        )
        mean_s = seen.prometheus.value(f"{total} / {number}", seen.ended_at)
        assert mean_s == near(fmean(times))
    for title, times, bounds in (
        ("Time to first token", first, FIRST_TOKEN_S),
        ("Time between tokens", inter, INTER_TOKEN_S),
    ):
        for index, share in enumerate((0.5, 0.95)):
            shown = by(panel(seen, title, index=index, board="overview"), "model")["tiny"]
            true = times[math.ceil(share * len(times)) - 1]
            assert bisect_left(bounds, shown) == bisect_left(bounds, true), (shown, true)
    for title, times, limit_s in (("First", first, 1.0), ("Next", inter, 0.1)):
        shown = by(panel(seen, f"{title} token in time"), "model")["tiny"]
        assert shown == near(sum(each <= limit_s for each in times) / len(times))


def test_speed_of_a_stream_is_that_of_the_clients(seen: Scene) -> None:
    """Tokens a second of one stream are one over the mean time between them."""
    full = [reply for reply in seen.truth.streams if b"@full" in reply.content]
    gaps = [(reply.token_times[-1] - reply.token_times[0]) / 11 for reply in full]
    shown = panel(seen, "Tokens a stream")
    assert by(shown, "variant")["full"] == near(1 / fmean(gaps))


def test_failures_are_those_of_the_clients(seen: Scene) -> None:
    """The share of failed requests, in the panel and in the rule that the alerts go by."""
    panel_shows = by(panel(seen, "Failed requests"), "model")
    rule = "model:narrowgate_requests_failed:ratio_rate5m"
    rule_says = by(seen.prometheus.query(rule, seen.ended_at + 2), "model")
    for model in ("tiny", "narrow", "frail", "brief"):
        failed = seen.truth.of("error", "timeout", "shed", model=model)
        true = failed / (failed + seen.truth.of("ok", model=model))
        assert panel_shows[model] == near(true)
        assert rule_says[model] == near(true)


def test_running_is_what_runs(seen: Scene) -> None:
    """While streams were held open the gauge, and the engine's own, said so."""
    running = by(panel(seen, "Waiting and running", index=1, at=seen.held_at), "model")
    assert running["tiny"] == NUM_HELD
    engine = by(panel(seen, "Running and waiting", at=seen.held_at), "variant")
    assert engine["int4"] == NUM_HELD


def test_the_shadow_accounts_for_all(seen: Scene) -> None:
    """Candidates are scored or dropped; int4, which costs more than the full model, drifts."""
    assert set(by(panel(seen, "Unaccounted"), "model").values()) == {0}
    verdicts = seen.prometheus.query(
        'narrowgate_drift_state{model="tiny",slice="all"}', seen.ended_at
    )
    assert by(verdicts, "variant")["int4"] == 2


def test_rules_are_evaluated_without_error(seen: Scene) -> None:
    """By the Prometheus itself; those of long windows may not have had their turn yet."""
    groups = seen.prometheus.get("/api/v1/rules")["groups"]
    rules = [(rule, group["interval"]) for group in groups for rule in group["rules"]]
    assert len(rules) == len(alerts()) + len(list(recordings()))
    for rule, every_s in rules:
        expected = {"ok", "unknown"} if every_s > seen.ended_at - seen.began_at else {"ok"}
        assert rule["health"] in expected, rule
        assert not rule.get("lastError"), rule


def test_the_truth_alarms(seen: Scene) -> None:
    """The drift is pending, or fires by now; the restarts fire, and what was well is silent."""
    found = seen.prometheus.query("ALERTS", seen.ended_at + 2)
    states = {
        (each["metric"]["alertname"].removeprefix("Narrowgate"), each["metric"].get("model")): each[
            "metric"
        ]["alertstate"]
        for each in found
    }
    assert states["ModelDrift", "tiny"] in {"pending", "firing"}
    assert states["EngineRestartLoop", "frail"] == "firing"
    assert states["ErrorBudgetBurnFast", "tiny"] in {"pending", "firing"}
    silent = {"GatewayDown", "QueueStanding", "ReferenceDown", "SwapFailed", "ProbeChanged"}
    assert not silent & {name for name, _ in states}


def test_every_expression_can_be_asked(seen: Scene) -> None:
    """Alerts, recording rules and the queries of runbooks."""
    exprs = [each.expr for each in alerts()] + [each.expr for each in recordings()]
    exprs += [query for each in runbooks() for query in each.queries]
    for expr in exprs:
        seen.prometheus.query(expr, seen.ended_at)
