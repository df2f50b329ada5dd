"""Decisions about a canary that an operator asked for: what may end it, and what comes first."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.shadow.ladder import decide
from gateway.shadow.ladder_order import Ending, Terms
from gateway.shadow.ladder_rules import Act, Canary, Cause, Decision, LadderRules, Situation
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.slices import ALL
from gateway.shadow.verdict import State, Verdict
from tests.gateway.shadow.test_ladder_policy import CODE, LADDER, situation, verdict

TERMS = Terms(share=0.2, num_requests=100, patience_s=600, beside="int8")
MODES: tuple[dict[str, Any], ...] = ({}, {"dry_run": True}, {"is_off": True})


def tried(
    verdicts: dict[str, dict[str, Verdict]],
    *,
    num_scored: int = 1_000,
    age: float = 10,
    **other: Any,
) -> Situation:
    """Return a model on int8 with int4 on trial, as an operator asked."""
    seen = situation(verdicts, active="int8")
    canary = Canary("int4", seen.now - age, num_scored, TERMS)
    return replace(seen, home="int8", canary=canary, **other)


@given(
    st.lists(st.sampled_from([None, *State]), min_size=4, max_size=4),
    st.sampled_from(MODES),
    st.sampled_from(["int8", "full"]),
    st.sampled_from([None, "an engine of it was lost"]),
    st.sampled_from([0, 1_000]),
    st.sampled_from([10.0, 600.0]),
    st.sampled_from([None, 0]),
)
def test_what_may_be_decided(
    states: list[State | None],
    mode: dict[str, Any],
    active: str,
    trouble: str | None,
    num_scored: int,
    age: float,
    free: int | None,
) -> None:
    """Promoted on proof alone; its end is no dry run; nothing else is tried or outlasts it."""
    verdicts: dict[str, dict[str, Verdict]] = {"int4": {}, "int8": {}}
    pairs = [(rung, name) for rung in verdicts for name in (ALL, CODE)]
    for (rung, name), state in zip(pairs, states, strict=True):
        if state is not None:
            verdicts[rung][name] = verdict(state, name=name, confirmed=9_999)
    needed = dict.fromkeys(LADDER, 1)
    seen = tried(verdicts, num_scored=num_scored, age=age, trouble=trouble)
    seen = replace(seen, active=active, free_bytes=free, needed_bytes=needed)
    decision = decide(seen, LadderRules(pinned=frozenset({CODE}), **mode))
    assert decision.act is not Act.START_CANARY
    if decision.act in {Act.PROMOTE, Act.ROLL_BACK} and not decision.is_dry:
        assert decision.to == "int4"
    elif decision.act is not Act.STAY:
        assert decision.is_dry or not mode
    if decision.act is Act.PROMOTE:
        assert states[0] is State.OK
        assert states[1] in {None, State.OK}
        assert (active, trouble, num_scored) == ("int8", None, 1_000)
    if decision.act is Act.STAY or decision.is_dry:
        assert (active, trouble) == ("int8", None)
        assert State.DRIFT not in states[:2]
        assert age < TERMS.patience_s


@pytest.mark.parametrize("state", [State.OK, State.DRIFT, State.LEARNING])
def test_safety_comes_first(state: State) -> None:
    """With the ladder on a drift of what serves is left at once, however the canary does."""
    drifting = {"int8": {ALL: verdict(State.DRIFT)}, "int4": {ALL: verdict(state)}}
    decision = decide(tried(drifting), LadderRules())
    assert (decision.act, decision.to) == (Act.STEP_UP, "full")


def test_without_a_safer_rung_it_is_judged_all_the_same() -> None:
    """A drift that nothing can be done about keeps no canary from its end."""
    drifting = {"full": {ALL: verdict(State.DRIFT)}, "int4": {ALL: verdict(State.OK)}}
    seen = tried(drifting)
    canary = replace(seen.canary or Canary("", 0, 0), terms=replace(TERMS, beside="full"))
    decision = decide(replace(seen, active="full", canary=canary), LadderRules())
    assert (decision.act, decision.to) == (Act.PROMOTE, "int4")


def test_a_slice_that_nobody_asked_for_keeps_nothing_up() -> None:
    """A pinned slice counts once it was scored."""
    seen = {"int4": {ALL: verdict(State.OK), CODE: verdict(State.LEARNING, name=CODE, n=0)}}
    rules = LadderRules(pinned=frozenset({CODE}))
    assert decide(tried(seen), rules).act is Act.PROMOTE
    seen["int4"][CODE] = verdict(State.LEARNING, name=CODE, n=1)
    assert decide(tried(seen), rules).act is Act.STAY


@pytest.mark.parametrize(
    ("decision", "ending"),
    [
        (Decision(Act.PROMOTE, "why", to="int4"), Ending.PROMOTED),
        (Decision(Act.ROLL_BACK, "why", to="int4"), Ending.ROLLED_BACK),
        (Decision(Act.ROLL_BACK, "why", to="int4", cause=Cause.WITHDRAWN), Ending.WITHDRAWN),
        (Decision(Act.STEP_UP, "why", to="full"), Ending.SUPERSEDED),
    ],
)
def test_where_each_end_leads(decision: Decision, ending: Ending) -> None:
    """Each is remembered with its reason; a promoted one is home, beside the settings' rung."""
    canary = Canary("int4", 5.0, 7, TERMS)
    after = Standing("int8", "int8", canary=canary).after(decision, 50.0)
    assert after.canary_order is None
    assert after.ended is not None
    assert (after.ended.variant, after.ended.ending, after.ended.reason) == ("int4", ending, "why")
    promoted = ending is Ending.PROMOTED
    assert (after.home, after.origin) == (("int4", "int8") if promoted else ("int8", None))
