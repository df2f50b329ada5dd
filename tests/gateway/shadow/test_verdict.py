"""Verdicts: how they come about, how they are left, and what they survive."""

import json
import math
import random
import time
from collections.abc import Sequence

import pytest

from gateway.errors import SettingsError
from gateway.shadow.monitor import Monitor, MonitorRules
from gateway.shadow.slices import ALL, all_slices
from gateway.shadow.tolerance import FalseAlarmBudget, Source, ToleranceRules, Tolerances
from gateway.shadow.trial import Strictness, Trial
from gateway.shadow.verdict import Change, Reason, State, Summary, summarize

CODE = "domain:code"
PROSE = "domain:prose"
TOLERANCE = 0.036


def make_monitor(
    *,
    by_hand: float | None = TOLERANCE,
    slices: Sequence[str] = all_slices(),
    digest: str = "d1",
    rules: MonitorRules | None = None,
    baseline: int = 200,
) -> Monitor:
    """Return a monitor, of a tolerance by hand or to be learned."""
    hand = {} if by_hand is None else {ALL: by_hand}
    tolerances = Tolerances(ToleranceRules(by_hand=hand, baseline_requests=baseline), None)
    return Monitor(digest, slices, tolerances, rules)


def feed(
    monitor: Monitor,
    mean: float,
    num: int,
    *,
    slices: Sequence[str] = (ALL, CODE),
    seed: int = 1,
    start: float = 0.0,
) -> list[Change]:
    """Score requests with heavy-tailed divergences of this mean, one a second."""
    choose = random.Random(seed)
    changes: list[Change] = []
    for number in range(num):
        divergence = choose.gammavariate(0.5, 2 * mean)
        changes += monitor.observe(dict.fromkeys(slices, divergence), start + number)
    return changes


def test_learning_becomes_ok_by_evidence() -> None:
    """A model far within its tolerance is ok when the upper bound says so, and not before."""
    monitor = make_monitor()
    assert monitor.verdicts()[ALL].state is State.LEARNING
    changes = feed(monitor, 0.012, 1000)
    first = changes[0]
    assert (first.before, first.after) == (State.LEARNING, State.OK)
    assert first.reason is Reason.SHOWN_OK
    assert first.evidence.upper < TOLERANCE
    assert 70 < first.evidence.n < 500
    verdict = monitor.verdicts()[ALL]
    assert verdict.state is State.OK
    assert verdict.since == first.time == first.evidence.n - 1
    assert verdict.lower < 0.012 < verdict.upper
    assert monitor.verdicts()["turns:multi"].state is State.LEARNING


def test_bad_from_the_beginning_is_drift() -> None:
    """A model beyond its tolerance never becomes ok."""
    monitor = make_monitor()
    changes = feed(monitor, 2 * TOLERANCE, 3000)
    assert {change.after for change in changes} == {State.DRIFT}
    assert all(change.evidence.n < 1000 for change in changes)


def test_gross_damage_is_caught_within_thirty_requests() -> None:
    """A model that talks nonsense is in drift after a dozen scored requests, new or accepted."""
    for good in (0, 1000):
        monitor = make_monitor()
        feed(monitor, 0.012, good)
        changes = feed(monitor, 6.0, 30, start=good)
        assert {(change.slice, change.after) for change in changes} == {
            (ALL, State.DRIFT),
            (CODE, State.DRIFT),
        }


def test_drift_after_ok_is_an_alarm_with_its_evidence() -> None:
    """The detector finds a later change, and the change carries the numbers."""
    monitor = make_monitor()
    feed(monitor, 0.03, 4000)
    assert monitor.verdicts()[ALL].state is State.OK
    (change, _) = feed(monitor, 0.12, 200, start=4000)
    assert (change.slice, change.before, change.after) == (ALL, State.OK, State.DRIFT)
    assert change.reason is Reason.ALARM
    assert change.time < 4000 + 100
    assert change.evidence.log10_e > math.log10(100_000 * 26) - 0.01
    assert change.evidence.n > 4000


def test_damage_in_one_slice_is_found_in_that_slice() -> None:
    """A tenth of the traffic drifts: its slice tells, the others do not."""
    monitor = make_monitor()
    changes: list[Change] = []
    choose = random.Random(5)
    for number in range(20_000):
        name = CODE if number % 10 == 0 else PROSE
        mean = 0.06 if name == CODE and number > 10_000 else 0.02
        changes += monitor.observe(
            dict.fromkeys((ALL, name), choose.gammavariate(0.5, 2 * mean)), number
        )
    assert [change.slice for change in changes if change.after is State.DRIFT] == [CODE]
    summary = summarize(monitor.verdicts().values())
    assert summary.state is State.DRIFT
    assert summary.worst is not None
    assert summary.worst.slice == CODE
    assert monitor.verdicts()[ALL].state is State.OK


def test_drift_is_left_by_evidence_only() -> None:
    """Silence and a few good requests change nothing; enough of them do, also after much damage."""
    monitor = make_monitor()
    feed(monitor, 0.2, 5000)
    assert monitor.verdicts()[ALL].state is State.DRIFT
    monitor.served(5000.0)
    for number in range(200):
        monitor.served(6000.0 + number)
    assert not monitor.watch(1e6)
    assert not feed(monitor, 0.012, 60, start=1e6)
    assert monitor.verdicts()[ALL].state is State.DRIFT
    changes = feed(monitor, 0.012, 600, start=2e6)
    assert {(change.after, change.reason) for change in changes} == {(State.OK, Reason.RECOVERED)}
    verdict = monitor.verdicts()[ALL]
    assert verdict.upper < TOLERANCE
    assert verdict.log10_e < 1.5
    assert {change.after for change in feed(monitor, 0.2, 100, start=3e6)} == {State.DRIFT}


def test_a_new_try_forgets_what_was_undecided() -> None:
    """Told to try again, a drift ends after as many good requests as if nothing had been before."""
    needed = []
    for is_told in (False, True):
        monitor = make_monitor(slices=(ALL,))
        feed(monitor, 2 * TOLERANCE, 500, slices=(ALL,))
        feed(monitor, TOLERANCE, 400, slices=(ALL,), seed=2)
        assert monitor.verdicts()[ALL].state is State.DRIFT
        if is_told:
            monitor.try_again(0.0)
        (change,) = feed(monitor, 0.5 * TOLERANCE, 3000, slices=(ALL,), seed=3)
        needed.append(change.time)
    assert needed[1] < 400
    assert needed[1] < needed[0]


def test_a_new_try_proves_what_is_ok_anew() -> None:
    """Told to try again, `ok` is left, and shown by as many good requests as a new rung needs."""
    monitor = make_monitor(slices=(ALL,))
    (first,) = feed(monitor, 0.5 * TOLERANCE, 3000, slices=(ALL,))
    (left,) = monitor.try_again(5_000.0)
    assert (left.before, left.after, left.reason) == (State.OK, State.LEARNING, Reason.BEGUN_ANEW)
    begun = monitor.verdicts()[ALL]
    assert (begun.state, begun.n, begun.since) == (State.LEARNING, 0, 5_000.0)
    assert monitor.try_again(5_001.0) == []
    (again,) = feed(monitor, 0.5 * TOLERANCE, 3000, slices=(ALL,), start=6_000)
    assert again.after is State.OK
    assert first.time <= again.time - 6_000 <= 2 * first.time
    assert monitor.verdicts()[ALL].upper < TOLERANCE
    assert monitor.try_again(9_500.0, unless_since=6_000.0) == []
    assert monitor.verdicts()[ALL].state is State.OK


def test_many_tries_are_no_more_often_wrong_than_one() -> None:
    """The errors of all tries add up to that of one at most, so each proof takes longer."""
    trial = Trial(TOLERANCE, Strictness(error=0.05, threshold=1e9, clip=10.0))
    errors, needed = [], []
    for _ in range(20):
        trial.add(0.0)
        trial.try_again()
        trial.try_again()  # nothing came between: it is the same try
        errors.append(trial.error)
        while (reason := trial.add(0.0)) is None:
            pass
        needed.append(trial.sequence.n)
        trial.enter(reason)
    assert trial.state is State.OK
    assert errors[0] == pytest.approx(0.05 / 2)
    assert sum(errors) < 0.05
    assert needed == sorted(needed)
    assert needed[0] < needed[4] < needed[-1] < 3 * needed[0]


def test_a_new_try_hides_no_damage() -> None:
    """The detector goes on through a new try: its evidence neither begins anew nor is doubled."""
    told, untold = (make_monitor(slices=(ALL,)) for _ in range(2))
    for monitor in (told, untold):
        feed(monitor, 0.5 * TOLERANCE, 500, slices=(ALL,))
        feed(monitor, 2 * TOLERANCE, 5, slices=(ALL,), seed=2)
    told.try_again(1.0)
    assert told.verdicts()[ALL].log10_e == untold.verdicts()[ALL].log10_e > 0.5


def test_a_drift_that_stays_is_not_left() -> None:
    """However long one tries, a mean above the tolerance is not taken for a recovery."""
    monitor = make_monitor(slices=(ALL,))
    changes = feed(monitor, 1.3 * TOLERANCE, 30_000, slices=(ALL,))
    assert [change.after for change in changes] == [State.DRIFT]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_damage(broken: float) -> None:
    """Divergences that are no numbers count as the worst, and leave all numbers finite."""
    monitor = make_monitor()
    changes: list[Change] = []
    for number in range(30):
        changes += monitor.observe({ALL: broken}, number)
    assert [change.after for change in changes] == [State.DRIFT]
    verdict = monitor.verdicts()[ALL]
    assert verdict.mean == pytest.approx(10 * TOLERANCE)
    assert math.isfinite(verdict.lower + verdict.upper + verdict.log10_e)


def test_one_broken_request_is_no_alarm() -> None:
    """A single request without numbers does not turn an accepted model."""
    monitor = make_monitor()
    feed(monitor, 0.012, 1000)
    assert not monitor.observe({ALL: math.nan}, 1000)


def test_unscored_traffic_makes_verdicts_stale() -> None:
    """Served requests without scores, so many and so long, cover ok; the next score uncovers."""
    monitor = make_monitor()
    feed(monitor, 0.012, 1000)
    for number in range(99):
        monitor.served(2000.0 + number)
    assert not monitor.watch(9000.0), "too few"
    monitor.served(9000.0)
    assert not monitor.watch(2500.0), "too soon"
    changes = monitor.watch(9000.0)
    assert {change.slice for change in changes} == {ALL, CODE}
    assert {change.reason for change in changes} == {Reason.UNSCORED}
    assert monitor.verdicts()[PROSE].state is State.LEARNING, "never seen"
    assert monitor.verdicts()[ALL].state is State.STALE
    assert monitor.verdicts()[ALL].since == 9000.0
    assert not monitor.watch(9001.0), "told once"
    (fresh,) = monitor.observe({ALL: 0.01}, 9002.0)
    assert (fresh.before, fresh.after) == (State.STALE, State.OK)
    assert {change.slice for change in monitor.watch(9003.0)} == {CODE}
    assert monitor.verdicts()[CODE].state is State.OK


def test_no_traffic_is_not_stale() -> None:
    """A model that nobody asks keeps its verdict."""
    monitor = make_monitor()
    feed(monitor, 0.012, 1000)
    assert not monitor.watch(1e9)


def test_a_slice_can_be_stale_alone() -> None:
    """Traffic noted for one slice, and scores for others, make that one stale."""
    monitor = make_monitor()
    feed(monitor, 0.012, 1000)
    for number in range(200):
        monitor.served(2000.0 + 10 * number, (ALL, CODE))
        monitor.observe({ALL: 0.01}, 2000.0 + 10 * number)
    assert [change.slice for change in monitor.watch(4000.0)] == [CODE]


def test_a_learned_tolerance() -> None:
    """Without figures the first requests say what is usual; what is worse later is drift."""
    monitor = make_monitor(by_hand=None)
    assert not feed(monitor, 0.03, 199)
    verdict = monitor.verdicts()[ALL]
    assert (verdict.state, verdict.tolerance, verdict.n) == (State.LEARNING, None, 199)
    assert 0 <= verdict.lower < 0.03 < verdict.upper < 3.01
    changes = feed(monitor, 0.03, 8000, seed=2)
    verdict = monitor.verdicts()[ALL]
    assert verdict.tolerance is not None
    assert 0.036 < verdict.tolerance < 0.06
    assert verdict.tolerance_source is Source.LEARNED
    assert {change.after for change in changes} == {State.OK}
    assert {change.after for change in feed(monitor, 0.2, 300)} == {State.DRIFT}


def test_a_learned_tolerance_has_a_ceiling() -> None:
    """What is terrible from the first request on is not taken for usual."""
    monitor = make_monitor(by_hand=None)
    feed(monitor, 2.0, 300)
    assert monitor.verdicts()[ALL].tolerance == 0.3
    assert monitor.verdicts()[ALL].state is State.DRIFT


def test_knowledge_survives_a_restart() -> None:
    """A monitor restored from JSON says the same, and goes on the same."""
    for by_hand in (TOLERANCE, None):
        before = make_monitor(by_hand=by_hand)
        feed(before, 0.03, 2500)
        feed(before, 0.3, 150, slices=(ALL,), start=2500)
        feed(before, 0.01, 50, slices=(PROSE,))
        after = make_monitor(by_hand=by_hand)
        assert after.restore(json.loads(json.dumps(before.to_state())))
        assert after.verdicts() == before.verdicts()
        assert after.verdicts()[ALL].state is State.DRIFT
        assert feed(after, 0.012, 900, seed=7) == feed(before, 0.012, 900, seed=7)
        assert after.to_state() == before.to_state()


def test_another_digest_begins_anew() -> None:
    """What was learned of another artifact or reference is worth nothing."""
    before = make_monitor()
    feed(before, 0.012, 1000)
    after = make_monitor(digest="d2")
    assert not after.restore(before.to_state())
    assert after.verdicts() == make_monitor().verdicts()


def test_another_tolerance_begins_anew() -> None:
    """Evidence for one tolerance says nothing for another."""
    before = make_monitor()
    feed(before, 0.012, 1000)
    after = make_monitor(by_hand=0.02)
    assert after.restore(before.to_state())
    assert after.verdicts()[ALL].state is State.LEARNING


@pytest.mark.parametrize(
    "state",
    [None, [], {}, {"version": 9}, {"version": 1, "digest": "d1", "slices": {ALL: {"trial": 1}}}],
)
def test_a_state_that_cannot_be_read_is_ignored(
    state: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged or foreign state costs the knowledge, not the service, and one line says so."""
    monitor = make_monitor()
    assert not monitor.restore(state)
    assert len(caplog.records) == 1
    assert "begin anew" in caplog.text


def test_unknown_slices_are_refused() -> None:
    """A slice that no promise covers is an error, not a new series."""
    with pytest.raises(ValueError, match="'domain:poetry'"):
        make_monitor().observe({"domain:poetry": 0.1}, 0.0)


def test_wrong_rules_are_refused() -> None:
    """Each rule out of range is one line that names it."""
    with pytest.raises(SettingsError, match="'confidence' is 1"):
        MonitorRules(confidence=1)
    with pytest.raises(SettingsError, match="'clip' is 1"):
        MonitorRules(clip=1)
    with pytest.raises(SettingsError, match="'stale_after_s' is 0"):
        MonitorRules(stale_after_s=0)
    rules = ToleranceRules(by_hand={"domain:poetry": 0.1})
    with pytest.raises(SettingsError, match="'tolerance' names the slice 'domain:poetry': use one"):
        Monitor("d1", all_slices(), Tolerances(rules, None))


def test_a_tighter_budget_alarms_later() -> None:
    """Ten thousand times fewer false alarms cost more requests until a true one."""
    times = []
    for requests in (1_000, 10_000_000):
        monitor = make_monitor(rules=MonitorRules(budget=FalseAlarmBudget(requests)))
        feed(monitor, 0.012, 1000)
        times.append(feed(monitor, 0.08, 1000, start=1000)[0].time)
    assert times[0] < times[1]


def test_nothing_scored_has_no_worst_slice() -> None:
    """A monitor that saw nothing is learning, and names no slice."""
    assert summarize(make_monitor().verdicts().values()) == Summary(State.LEARNING, None)


def test_observing_is_cheap() -> None:
    """A scored request costs less than 50 microseconds a slice, while learning and after."""
    monitor = make_monitor()
    names = all_slices()[:9]
    for mean in (0.03, 0.012):
        best = math.inf
        for _ in range(5):
            started = time.thread_time()
            feed(monitor, mean, 100, slices=names)
            best = min(best, time.thread_time() - started)
        assert best / 900 < 50e-6
