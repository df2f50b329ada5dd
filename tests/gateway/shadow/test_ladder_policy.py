"""Decisions about a ladder: up on drift, down on evidence, and to rest on the safe side."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import SettingsError
from gateway.shadow.ladder import decide
from gateway.shadow.ladder_rules import Act, Canary, LadderRules, Situation, Step
from gateway.shadow.slices import ALL
from gateway.shadow.tolerance import Source
from gateway.shadow.verdict import State, Verdict

LADDER = ("int4", "int8", "full")
RULES = LadderRules(cool_down_s=300, return_after_s=3600, canary_requests=100)
CODE = "domain:code"
LATE = "position:256+"
CJK, MATH = "script:cjk", "domain:math"


def verdict(
    state: State,
    *,
    name: str = ALL,
    n: int = 1000,
    since: float | None = 1e6,
    confirmed: float | None = None,
) -> Verdict:
    """Return a verdict of few words, which was shown after all else unless said otherwise."""
    return Verdict(name, state, n, 0.05, 0.04, 0.06, 0.036, Source.SET, 0.0, since, 0.0, confirmed)


def of(**states: State) -> dict[str, Verdict]:
    """Return verdicts of slices; ``code`` and ``late`` are short for two slices."""
    names = {"code": CODE, "late": LATE}
    return {
        names.get(key, key): verdict(state, name=names.get(key, key))
        for key, state in states.items()
    }


def situation(
    verdicts: Mapping[str, Mapping[str, Verdict]], *, active: str = "int4", now: float = 10_000
) -> Situation:
    """Return a model on one of its rungs, with nothing done so far."""
    return Situation(now, LADDER, active, "int4", verdicts)


def test_nothing_speaks_against_a_sound_rung() -> None:
    """Learning, ok and stale are no reasons to step; nor is a slice that is not pinned."""
    for state in (State.LEARNING, State.OK, State.STALE):
        seen = situation({"int4": of(all=state, code=State.DRIFT)})
        assert decide(seen, RULES).act is Act.STAY


def test_drift_of_the_model_steps_up() -> None:
    """The next safer rung takes over, and the reason has the numbers."""
    decision = decide(situation({"int4": of(all=State.DRIFT)}), RULES)
    assert (decision.name, decision.to) == ("step_up", "int8")
    assert decision.reason == (
        "int4: all drifts (tolerance 0.036 nats; since the alarm mean 0.05 nats, at least 0.04, "
        "1000 scored)"
    )


def test_a_dry_run_only_tells() -> None:
    """In a dry run the same decision is marked as one that would be made."""
    dry = replace(RULES, dry_run=True)
    decision = decide(situation({"int4": of(all=State.DRIFT)}), dry)
    assert (decision.name, decision.to, decision.is_dry) == ("would_step_up", "int8", True)
    assert decide(situation({"int4": of(all=State.OK)}), dry).name == "stay"


def test_rungs_known_to_drift_are_passed_over() -> None:
    """A safer rung whose own verdict is drift is no refuge, unless it is all there is."""
    both = {"int4": of(all=State.DRIFT), "int8": of(all=State.DRIFT)}
    assert decide(situation(both), RULES).to == "full"
    two = replace(situation(both), ladder=("int4", "int8"))
    assert decide(two, RULES).to == "int8"


def test_rungs_that_failed_to_load_are_passed_over() -> None:
    """Drift above is borne rather than a load that fails; the way back waits, too."""
    seen = replace(situation({"int4": of(all=State.DRIFT)}), failed=frozenset({"int8"}))
    assert decide(seen, RULES).to == "full"
    worse = {"int4": of(all=State.DRIFT), "full": of(all=State.DRIFT)}
    assert decide(replace(seen, verdicts=worse), RULES).to == "full"
    assert decide(replace(seen, failed=frozenset({"int8", "full"})), RULES).to == "full"
    rules = replace(RULES, return_after_requests=0)
    back = situation({"int8": of(all=State.OK)}, active="int8")
    assert decide(back, rules).act is Act.START_CANARY
    waits = decide(replace(back, failed=frozenset({"int4"})), rules)
    assert waits.reason == "int4 is not tried again yet: it cannot be loaded now"


def test_the_safest_rung_stays() -> None:
    """Drift on the last rung is told, and nothing is done."""
    decision = decide(situation({"full": of(all=State.DRIFT)}, active="full"), RULES)
    assert decision.act is Act.STAY
    assert "no rung is safer" in decision.reason


def test_a_step_waits_for_the_cool_down() -> None:
    """After a step the next one waits, and says for how long."""
    step = Step(9_900, Act.STEP_UP, "int4", "int8")
    seen = replace(
        situation({"int8": of(all=State.DRIFT)}, active="int8"), steps=(step,), now=10_000
    )
    assert decide(seen, RULES).reason.endswith("200 s of 300 s are left to wait")
    assert decide(replace(seen, now=10_200), RULES).to == "full"


def test_no_step_without_memory() -> None:
    """A rung that does not fit is not asked for; one of unknown size is."""
    seen = replace(
        situation({"int4": of(all=State.DRIFT)}), free_bytes=100, needed_bytes={"int8": 101}
    )
    decision = decide(seen, RULES)
    assert decision.act is Act.STAY
    assert decision.reason.endswith("int8 needs 101 bytes of memory, and 100 are free")
    assert decide(replace(seen, free_bytes=101), RULES).act is Act.STEP_UP
    assert decide(replace(seen, needed_bytes={}), RULES).act is Act.STEP_UP


def test_only_pinned_slices_count() -> None:
    """The drift of a pinned slice steps the model."""
    pinned = replace(RULES, pinned=frozenset({CODE}))
    seen = situation({"int4": of(all=State.OK, code=State.DRIFT)})
    assert decide(seen, pinned).act is Act.STEP_UP
    assert decide(seen, RULES).act is Act.STAY


def test_a_pinned_slice_can_be_routed_alone() -> None:
    """Most of the slice goes to the safer rung; a share stays, so that a repair can be seen."""
    rules = replace(RULES, pinned=frozenset({CODE}), route_slices=True)
    seen = situation({"int4": of(all=State.OK, code=State.DRIFT)})
    decision = decide(seen, rules)
    assert (decision.act, decision.to, decision.slices) == (Act.ROUTE_SLICES, "int8", (CODE,))
    assert decision.share == pytest.approx(0.95)
    routed = replace(seen, routed={CODE: "int8"})
    assert decide(routed, rules).act is Act.STAY
    worse = replace(routed, verdicts={**seen.verdicts, "int8": of(code=State.DRIFT)})
    assert decide(worse, rules).to == "full"
    # After a restart nothing is known of int8 yet: that is no reason to go there again.
    assert decide(replace(seen, routed={CODE: "full"}), rules).act is Act.STAY


def test_positions_cannot_be_routed() -> None:
    """Nobody knows beforehand how long an answer will be: the whole model steps."""
    rules = replace(RULES, pinned=frozenset({LATE}), route_slices=True)
    assert decide(situation({"int4": of(all=State.OK, late=State.DRIFT)}), rules).act is (
        Act.STEP_UP
    )


def test_routed_slices_are_given_back_on_evidence() -> None:
    """A slice comes back when what stayed was shown to be ok, or when it is pinned no longer."""
    rules = replace(RULES, pinned=frozenset({CODE}), route_slices=True)
    routed = replace(situation({"int4": of(all=State.OK, code=State.OK)}), routed={CODE: "int8"})
    decision = decide(routed, rules)
    assert (decision.act, decision.slices) == (Act.GIVE_BACK_SLICES, (CODE,))
    drifting = replace(routed, verdicts={"int4": of(all=State.OK, code=State.DRIFT)})
    assert decide(drifting, rules).act is Act.STAY
    assert decide(drifting, replace(rules, pinned=frozenset())).act is Act.GIVE_BACK_SLICES


def test_slices_that_leave_together_go_together() -> None:
    """Slices with the same refuge are one decision; another rung's come with the next one."""
    rules = replace(RULES, pinned=frozenset({CODE, CJK, MATH}), route_slices=True)
    drift = {name: verdict(State.DRIFT, name=name) for name in (CODE, CJK, MATH)}
    seen = situation({"int4": of(all=State.OK) | drift, "int8": {CJK: drift[CJK]}})
    decision = decide(seen, rules)
    assert (decision.to, decision.slices) == ("int8", (CODE, MATH))
    routed = dict.fromkeys((CODE, MATH), "int8")
    decision = decide(replace(seen, routed=routed), rules)
    assert (decision.to, decision.slices) == ("full", (CJK,))
    found = situation({"int4": of(all=State.OK) | {n: verdict(State.OK, name=n) for n in drift}})
    back = decide(replace(found, routed={**routed, CJK: "full"}), rules)
    assert (back.act, back.slices) == (Act.GIVE_BACK_SLICES, (CODE, MATH))


def test_a_slice_is_not_given_back_at_once() -> None:
    """A cool-down after it was routed comes first; switched off, it goes with the whole model."""
    rules = replace(RULES, pinned=frozenset({CODE}), route_slices=True)
    step = Step(9_900, Act.ROUTE_SLICES, "int4", "int8", (CODE,))
    sound = situation({"int4": of(all=State.OK, code=State.OK)})
    seen = replace(sound, routed={CODE: "int8"}, steps=(step,))
    assert decide(seen, rules).act is Act.STAY
    assert decide(replace(seen, now=10_200), rules).act is Act.GIVE_BACK_SLICES
    off = replace(rules, route_slices=False)
    unknown = replace(seen, verdicts={}, now=10_200)
    assert decide(unknown, rules).act is Act.STAY
    assert decide(unknown, off).act is Act.GIVE_BACK_SLICES


def test_a_canary_makes_room_for_something_safer() -> None:
    """Where memory is short, the trial of a smaller rung ends before a drift is left standing."""
    rules = replace(RULES, pinned=frozenset({CODE}), route_slices=True)
    tight: dict[str, Any] = {"free_bytes": 1, "needed_bytes": {"full": 2}}
    for states in ({"all": State.DRIFT}, {"all": State.OK, "code": State.DRIFT}):
        seen = situation({"int8": of(**states)}, active="int8")
        trial = replace(seen, canary=Canary("int4", 9_000, 5), **tight)
        decision = decide(trial, rules)
        assert (decision.act, decision.to) == (Act.ROLL_BACK, "int4")
        refused = decide(replace(trial, canary=None), rules)
        assert refused.act is Act.STAY
        assert refused.refused is not None
        assert refused.refused.to == "full"
        assert refused.refused.act is (Act.STEP_UP if len(states) == 1 else Act.ROUTE_SLICES)


def test_no_way_down_before_anything_is_known() -> None:
    """A rung without a verdict, as after a restart, is no proof; the full model needs none."""
    assert decide(replace(returned(now=1e6), verdicts={}), RULES).act is Act.STAY
    full = replace(returned(now=1e6), verdicts={}, active="full")
    assert decide(full, RULES).act is Act.START_CANARY


def returned(*, now: float, n: int = 1000, state: State = State.OK) -> Situation:
    """Return a model that stepped from int4 to int8 at 10,000 s."""
    seen = situation(
        {"int4": of(all=State.DRIFT), "int8": {ALL: verdict(state, n=n)}}, active="int8", now=now
    )
    return replace(seen, steps=(Step(10_000, Act.STEP_UP, "int4", "int8"),))


def test_a_smaller_rung_is_tried_again_after_evidence_and_time() -> None:
    """Enough ok requests here and the pause over: it gets a share of the traffic, no more."""
    decision = decide(returned(now=13_600), RULES)
    assert (decision.act, decision.to, decision.share) == (Act.START_CANARY, "int4", 0.05)
    assert decide(returned(now=13_599), RULES).act is Act.STAY
    assert decide(returned(now=13_600, n=499), RULES).reason == (
        "int8: 499 of 500 requests are scored"
    )
    assert decide(returned(now=13_600, state=State.STALE), RULES).act is Act.STAY
    tight = replace(returned(now=13_600), free_bytes=1, needed_bytes={"int4": 2})
    assert decide(tight, RULES).act is Act.STAY


def test_nothing_below_the_operators_rung_is_tried() -> None:
    """A rung that the operator did not choose is not stepped down to."""
    seen = replace(returned(now=1e6), home="int8")
    assert decide(seen, RULES).act is Act.STAY


def test_each_failure_doubles_the_pause() -> None:
    """A rung that was rolled back twice after its first drift waits four times as long."""
    seen = returned(now=0)
    steps = (
        *seen.steps,
        Step(20_000, Act.ROLL_BACK, "int8", "int4"),
        Step(30_000, Act.ROLL_BACK, "int8", "int4"),
    )
    assert decide(replace(seen, steps=steps, now=44_399), RULES).act is Act.STAY
    assert decide(replace(seen, steps=steps, now=44_400), RULES).act is Act.START_CANARY


def test_tries_are_limited() -> None:
    """After as many tries as are allowed it comes to rest on the safe side."""
    seen = returned(now=0)
    tries = tuple(Step(20_000 + n, Act.START_CANARY, "int8", "int4") for n in range(4))
    decision = decide(replace(seen, steps=(*seen.steps, *tries), now=90_000), RULES)
    assert "4 tries within 86400 s" in decision.reason
    later = replace(seen, steps=(*seen.steps, *tries), now=120_000)
    assert decide(later, RULES).act is Act.START_CANARY


def on_trial(
    verdicts: Mapping[str, Verdict], *, num_scored: int = 100, age: float = 1000
) -> Situation:
    """Return a model on int8 with int4 as its canary since 20,000 s."""
    seen = situation({"int8": of(all=State.OK), "int4": verdicts}, active="int8", now=20_000 + age)
    return replace(seen, canary=Canary("int4", 20_000, num_scored))


def test_a_canary_is_promoted_by_evidence() -> None:
    """Enough scored requests and ok make it the active rung; one of both does not."""
    assert decide(on_trial(of(all=State.OK)), RULES).act is Act.PROMOTE
    assert decide(on_trial(of(all=State.OK), num_scored=99), RULES).act is Act.STAY
    assert decide(on_trial(of(all=State.LEARNING)), RULES).act is Act.STAY


def test_a_pinned_slice_can_hold_up_a_promotion() -> None:
    """Not while a pinned slice is learning; one that nobody asked for holds up nothing."""
    pinned = replace(RULES, pinned=frozenset({CODE}))
    learning = of(all=State.OK, code=State.LEARNING)
    assert decide(on_trial(learning), pinned).reason.startswith("int4: domain:code is learning")
    unseen = {**learning, CODE: verdict(State.LEARNING, name=CODE, n=0)}
    assert decide(on_trial(unseen), pinned).act is Act.PROMOTE


def test_a_canary_is_rolled_back_by_new_drift_only() -> None:
    """The drift for which it was left does not end the trial, drift shown since does."""
    old = {ALL: verdict(State.DRIFT, confirmed=19_999)}
    new = {ALL: verdict(State.DRIFT, confirmed=20_500)}
    assert decide(on_trial(old), RULES).act is Act.STAY
    decision = decide(on_trial(new), RULES)
    assert (decision.act, decision.to) == (Act.ROLL_BACK, "int4")


@pytest.mark.parametrize("since", [None, 0.0, 19_999.0])
@pytest.mark.parametrize("old", [ALL, CODE])
def test_a_canary_is_promoted_by_new_proof_only(old: str, since: float | None) -> None:
    """What was ok before it became the canary, as a whole or in a pinned slice, proves nothing."""
    pinned = replace(RULES, pinned=frozenset({CODE}))
    proven = of(all=State.OK, code=State.OK)
    assert decide(on_trial(proven), pinned).act is Act.PROMOTE
    seen = {**proven, old: verdict(State.OK, name=old, since=since)}
    decision = decide(on_trial(seen), pinned)
    assert decision.act is Act.STAY
    assert f"{old} was ok before that" in decision.reason


def test_patience_with_a_canary_ends() -> None:
    """Without a decision in time it is rolled back: no evidence is no reason to trust it."""
    undecided = on_trial(of(all=State.LEARNING), age=14_400)
    decision = decide(undecided, RULES)
    assert decision.act is Act.ROLL_BACK
    assert "all is learning, 14400 s after" in decision.reason


def test_drift_of_the_active_rung_goes_before_the_canary() -> None:
    """Who is in danger is helped first."""
    seen = on_trial(of(all=State.OK))
    seen = replace(seen, verdicts={**seen.verdicts, "int8": of(all=State.DRIFT)})
    assert (decide(seen, RULES).act, decide(seen, RULES).to) == (Act.STEP_UP, "full")


@dataclass
class Model:
    """A model that does what is decided, with an int4 that is never sound."""

    now: float = 0.0
    active: str = "int4"
    steps: list[Step] = field(default_factory=list)
    canary: Canary | None = None

    def look(self) -> Situation:
        """Return the situation: int4 drifts whenever it serves, int8 is ok."""
        serves = self.active == "int4" or self.canary is not None
        drift = verdict(State.DRIFT, confirmed=self.now if serves else 0.0)
        verdicts = {"int4": {ALL: drift}, "int8": of(all=State.OK)}
        return Situation(
            self.now, LADDER, self.active, "int4", verdicts, tuple(self.steps), {}, self.canary
        )

    def look_and_act(self) -> None:
        """Decide and act, as every five minutes."""
        self.now += 300
        decision = decide(self.look(), RULES)
        if decision.act is Act.STAY or decision.to is None:
            return
        self.steps.append(Step(self.now, decision.act, self.active, decision.to))
        if decision.act is Act.START_CANARY:
            self.canary = Canary(decision.to, self.now, 0)
        elif decision.act is Act.ROLL_BACK:
            self.canary = None
        else:
            self.active = decision.to


def test_a_rung_that_never_recovers_is_rarely_tried() -> None:
    """In thirty days of a decision every five minutes, int8 serves, and the tries become rarer."""
    model = Model()
    for _ in range(30 * 24 * 12):
        model.look_and_act()
    assert [step.act for step in model.steps if step.act is Act.STEP_UP] == [Act.STEP_UP]
    assert model.active == "int8"
    tries = [step.time for step in model.steps if step.act is Act.START_CANARY]
    assert 5 <= len(tries) <= 20
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps == sorted(gaps)


@given(
    st.lists(st.sampled_from([None, *State]), min_size=6, max_size=6),
    st.sampled_from(LADDER),
    st.sampled_from([None, "int4", "int8"]),
    st.sampled_from([None, 0, 10**9]),
    st.booleans(),
)
def test_every_decision_can_be_carried_out(
    states: list[State | None], active: str, trial: str | None, free: int | None, routes: bool
) -> None:
    """Whatever is known: up is up, what is named exists and fits, and a stay names no rung."""
    pairs = [(rung, name) for rung in ("int4", "int8") for name in (ALL, CODE, LATE)]
    verdicts: dict[str, dict[str, Verdict]] = {"int4": {}, "int8": {}}
    for (rung, name), state in zip(pairs, states, strict=True):
        if state is not None:
            verdicts[rung][name] = verdict(state, name=name, confirmed=9_000)
    canary = Canary(trial, 5_000, 1_000) if trial and trial != active else None
    seen = replace(
        situation(verdicts, active=active),
        canary=canary,
        free_bytes=free,
        needed_bytes=dict.fromkeys(LADDER, 1),
    )
    rules = replace(RULES, pinned=frozenset({CODE, LATE}), route_slices=routes)
    decision = decide(seen, rules)
    assert decision.reason
    assert (decision.to is None) == (decision.act is Act.STAY)
    if decision.act in {Act.STEP_UP, Act.ROUTE_SLICES} and decision.to is not None:
        assert LADDER.index(decision.to) > LADDER.index(active)
        assert free != 0
    if decision.act in {Act.PROMOTE, Act.ROLL_BACK}:
        assert canary is not None
        assert decision.to == canary.variant
    if decision.act is Act.START_CANARY:
        assert canary is None
        assert free != 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LadderRules(canary_share=0), "'canary_share' is 0"),
        (lambda: LadderRules(cool_down_s=0), "'cool_down_s' is 0"),
        (lambda: LadderRules(canary_requests=-1), "'canary_requests' is -1"),
    ],
)
def test_wrong_rules_are_refused(make: Callable[[], LadderRules], words: str) -> None:
    """Each rule out of range is one line that names it."""
    with pytest.raises(SettingsError, match=words):
        make()
