"""What a changed engine means to verdicts and to the ladder: drift, with no scored request."""

import math
from typing import Any

import pytest

from compression.fixed_texts import Reading, limits_of
from gateway.shadow.fixed_texts_finding import Finding, Outcome
from gateway.shadow.ladder import decide
from gateway.shadow.ladder_rules import Act, Canary, LadderRules, Situation
from gateway.shadow.since_build import changes_of
from gateway.shadow.slices import ALL
from gateway.shadow.verdict import SinceBuild, State
from tests.gateway.shadow.test_judge import SUBJECT, Bench, rules

CODE = "domain:code"
CHANGED = {ALL: SinceBuild("all", 0.008, 0.005)}
RULES = LadderRules(cool_down_s=300)


def finding(**distances: float) -> Finding:
    """Return what was found of texts whose limits are 5 millinats."""
    return Finding(
        Outcome.CHANGED,
        "changed",
        0.0,
        distances=distances,
        usual=dict.fromkeys(distances, 0.004),
        limits=dict.fromkeys(distances, 0.005),
    )


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ({"all": 0.004, "code": 0.005, "german": 0.001}, {}),
        ({"all": 0.008, "code": 0.009, "german": 0.004}, {ALL: "all", CODE: "code"}),
        ({"all": 0.004, "code": 0.006, "german": 0.004}, {CODE: "code"}),
        ({"all": 0.004, "code": 0.004, "german": 0.006}, {ALL: "german"}),
        ({"all": 0.004, "chinese": 0.006, "json": math.nan}, {"script:cjk": "chinese"}),
    ],
)
def test_texts_stand_for_slices(distances: dict[str, float], expected: dict[str, str]) -> None:
    """Damage of code is seen in its slice; prose in Latin script is the model's."""
    found = changes_of(finding(**distances))
    told = {name: each.text for name, each in found.items()}
    assert told == expected | ({"domain:json": "json"} if "json" in distances else {})
    assert changes_of(None) == {}


def test_limits_are_what_was_measured_to_tell_damage() -> None:
    """Wider ones would let 2 % in one layer pass, which only the real model shows."""
    distances = {"code": 0.004, "all": 0.005, "json": 0.0}
    found = limits_of(Reading(version="1", numerics="W8A16", distances=distances))
    assert list(found) == ["all", "code", "json"]
    assert found == pytest.approx({"all": 0.0054, "code": 0.0048, "json": 0.0001})


def test_a_changed_engine_is_drift_without_any_request() -> None:
    """Verdict, summary, event and gauge say so, until the engines are as they were."""
    bench = Bench(rules())
    assert bench.judge.verdicts("tiny", "int4") == {}
    bench.judge.hold("tiny", "int4", CHANGED)
    verdict = bench.judge.verdicts("tiny", "int4")[ALL]
    assert (verdict.state, verdict.n, verdict.since_build) == (State.DRIFT, 0, CHANGED[ALL])
    assert verdict.excess == pytest.approx(1.6)
    summary = bench.judge.summary("tiny", "int4")
    assert summary is not None
    assert (summary.state, summary.worst) == (State.DRIFT, verdict)
    assert gauge(bench) is None
    bench.judge.look()
    assert gauge(bench) == 2
    (event,) = bench.events
    assert (event["from"], event["to"]) == ("learning", "drift")
    assert "otherwise than at the build" in event["reason"]
    assert event["evidence"]["since_build"] == {"text": "all", "distance": 0.008, "limit": 0.005}
    bench.judge.hold("tiny", "int4", {})
    bench.judge.look()
    assert bench.state() is State.LEARNING
    assert gauge(bench) == 0
    assert bench.events[-1]["to"] == "learning"
    assert bench.judge.alarms("tiny", "int4") == []


def gauge(bench: Bench) -> float | None:
    """Return the verdict's gauge."""
    labels = {"model": "tiny", "variant": "int4", "slice": ALL}
    return bench.metrics.registry.get_sample_value("narrowgate_drift_state", labels)


def test_scores_do_not_take_it_back() -> None:
    """Live traffic that is as near as ever leaves the slice in drift, and others ok."""
    bench = Bench(rules(tolerance={"all": 0.02}))
    bench.judge.hold("tiny", "int4", {CODE: SinceBuild("code", 0.008, 0.005)})
    bench.score(0.001, 300)
    assert bench.state() is State.OK
    assert bench.state(CODE) is State.DRIFT
    summary = bench.judge.summary("tiny", "int4")
    assert summary is not None
    assert summary.state is State.DRIFT
    bench.judge.hold("tiny", "int4", {})
    assert bench.state(CODE) is State.OK


def test_no_event_takes_back_what_still_stands() -> None:
    """Scores that are fine make no event of a slice that drifts, and it drifts since it began."""
    bench = Bench(rules(tolerance={"all": 0.02}))
    bench.judge.hold("tiny", "int4", {CODE: SinceBuild("code", 0.008, 0.005)})
    began = bench.now
    for _ in range(3):
        bench.now += 60
        bench.score(0.001, 100)
    told = [(each["slice"], each["to"]) for each in bench.events]
    assert (ALL, "ok") in told
    assert [to for name, to in told if name == CODE] == ["drift"]
    assert [each.slice for each in bench.judge.alarms("tiny", "int4")] == [CODE]
    verdict = bench.judge.verdicts("tiny", "int4")[CODE]
    assert (verdict.since, verdict.confirmed) == (began, bench.now)
    labels = {"model": "tiny", "variant": "int4", "slice": CODE}
    sample = bench.metrics.registry.get_sample_value
    assert sample("narrowgate_drift_alarm_mean_nats", labels) is None


def test_what_scores_show_as_well_goes_on() -> None:
    """Engines that are as at the build take back their own evidence alone."""
    bench = Bench(rules(tolerance={"all": 0.02}))
    bench.judge.hold("tiny", "int4", CHANGED)
    bench.score(0.2, 300)
    bench.judge.hold("tiny", "int4", {})
    assert bench.state() is State.DRIFT
    alarm = next(each for each in bench.judge.alarms("tiny", "int4") if each.slice == ALL)
    assert (alarm.since_build, alarm.n > 0) == (None, True)


def test_it_outlives_a_monitor_that_begins_anew() -> None:
    """Another reference makes other evidence, and the same engine."""
    bench = Bench(rules())
    bench.judge.hold("tiny", "int4", CHANGED)
    bench.reference = "another"
    bench.score(0.001, 1)
    assert bench.state() is State.DRIFT


def test_a_slice_that_nobody_asked_for_is_shown_while_it_drifts() -> None:
    """And its series ends with that, or the last value would stand for ever."""
    bench = Bench(rules())
    labels = {"model": "tiny", "variant": "int4", "slice": CODE}
    for changed, expected in (({CODE: CHANGED[ALL]}, 2), ({}, None)):
        bench.judge.hold("tiny", "int4", changed)
        bench.judge.look()
        found = bench.metrics.registry.get_sample_value("narrowgate_drift_state", labels)
        assert found == expected


def test_it_is_told_once_and_when_it_can_be() -> None:
    """What is told every second makes one event, also where the variant was not known at first."""
    bench = Bench(rules(), subject=None)
    for subject in (None, SUBJECT, SUBJECT):
        bench.subject = subject
        bench.judge.hold("tiny", "int4", CHANGED)
    assert [each["to"] for each in bench.events] == ["drift"]


def test_what_is_not_loaded_is_not_held() -> None:
    """It has no verdicts either; nor is anything told where nothing was ever wrong."""
    bench = Bench(rules(), subject=None)
    bench.judge.hold("tiny", "int4", CHANGED)
    bench.judge.hold("tiny", "int4", {})
    sound = Bench(rules(), subject=SUBJECT)
    sound.judge.hold("tiny", "int4", {})
    for each in (bench, sound):
        assert each.judge.verdicts("tiny", "int4") == {}
        assert each.events == []


def situation(bench: Bench, **fields: Any) -> Situation:
    """Return a model whose smallest rung is what the bench watches."""
    verdicts = {"int4": bench.judge.verdicts("tiny", "int4")}
    return Situation(bench.now, ("int4", "int8", "full"), "int4", "int4", verdicts, **fields)


def test_the_ladder_leaves_a_changed_rung() -> None:
    """At once, with the reason; in a dry run it is told."""
    bench = Bench(rules())
    bench.judge.hold("tiny", "int4", CHANGED)
    decision = decide(situation(bench), RULES)
    assert (decision.name, decision.to) == ("step_up", "int8")
    assert decision.reason == (
        "int4: all changed since the build (fixed text 'all': 0.008 nats a token, limit 0.005)"
    )
    told = decide(situation(bench), LadderRules(dry_run=True))
    assert told.name == "would_step_up"


def test_code_alone_counts_where_it_is_pinned() -> None:
    """As any other drift of a slice."""
    bench = Bench(rules())
    bench.judge.hold("tiny", "int4", {CODE: SinceBuild("code", 0.008, 0.005)})
    assert decide(situation(bench), RULES).act is Act.STAY
    pinned = LadderRules(pinned=frozenset({CODE}))
    assert decide(situation(bench), pinned).act is Act.STEP_UP


def test_a_changed_canary_is_rolled_back() -> None:
    """Also where it was read before it became one."""
    bench = Bench(rules())
    bench.judge.hold("tiny", "int4", CHANGED)
    bench.now += 60
    bench.judge.look()
    canary = Canary("int4", bench.now - 1, 0)
    verdicts = {"int4": bench.judge.verdicts("tiny", "int4")}
    seen = Situation(bench.now, ("int4", "int8", "full"), "int8", "int4", verdicts, canary=canary)
    decision = decide(seen, RULES)
    assert (decision.act, decision.to) == (Act.ROLL_BACK, "int4")
    assert "changed since the build" in decision.reason
