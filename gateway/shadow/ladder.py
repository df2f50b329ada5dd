"""When to leave the active rung of a model's ladder, and when to come back: decisions only."""

from dataclasses import replace

from compression.recipe import FULL
from gateway.errors import CanaryRunning, InvalidRequest, NoMemory
from gateway.shadow.ladder_rules import Act, Canary, Cause, Decision, LadderRules, Situation
from gateway.shadow.slices import ALL, is_known_before
from gateway.shadow.verdict import State, Verdict

_MAX_DOUBLINGS = 6


def decide(situation: Situation, rules: LadderRules) -> Decision:
    """Return what to do now, with the reason in words and numbers.

    A drift is acted on first, then slices are routed, then a canary is judged; only when none of
    these asks for anything are slices given back, or a smaller rung tried again.
    """
    canary = situation.canary
    if canary is not None and canary.terms is not None:
        return _beside_an_order(situation, rules, canary)
    if rules.is_off:
        return Decision(Act.STAY, "steps are taken by hand")
    for consider in (_leave, _route, _consider_canary, _give_back, _come_back):
        decision = consider(situation, rules)
        if decision is not None:
            return replace(decision, is_dry=rules.dry_run and decision.act is not Act.STAY)
    return Decision(Act.STAY, f"{situation.active}: nothing speaks against it")


def _beside_an_order(situation: Situation, rules: LadderRules, canary: Canary) -> Decision:
    """Return what to do while an operator's canary is on trial, which no mode keeps from its end.

    Only a step away from a drift comes before it, and nothing else is tried beside it.
    """
    judged = _judge(situation, rules, canary)
    if rules.is_off:
        return judged
    found = _leave(situation, rules) or _route(situation, rules)
    is_step = found is not None and found.act is not Act.STAY
    if found is None or (judged.act is not Act.STAY and (rules.dry_run or not is_step)):
        return judged
    return replace(found, is_dry=rules.dry_run and is_step)


def _leave(situation: Situation, rules: LadderRules) -> Decision | None:
    """Step to a safer rung if the model drifts, or a slice that cannot be routed."""
    names = frozenset({ALL, *(each for each in rules.pinned if not _is_routed(each, rules))})
    drifting = situation.drifting(situation.active, names)
    if not drifting:
        return None
    reason = f"{situation.active}: {_in_words(drifting)}"
    safer = situation.refuge(names)
    if safer is None:
        return Decision(Act.STAY, f"{reason}; no rung is safer")
    if wait := _wait(situation, {Act.STEP_UP, Act.PROMOTE}, rules.cool_down_s):
        return Decision(Act.STAY, f"{reason}; {wait}")
    return _if_it_fits(situation, rules, Decision(Act.STEP_UP, reason, to=safer))


def _route(situation: Situation, rules: LadderRules) -> Decision | None:
    """Send pinned slices that drift to a safer rung, and only those; one rung at a time.

    A slice that is routed already moves up only; it comes back when it is given back.
    """
    names = frozenset(each for each in rules.pinned if _is_routed(each, rules))
    by_rung: dict[str, list[Verdict]] = {}
    for verdict in situation.drifting(situation.active, names):
        safer = situation.refuge(frozenset({verdict.slice}))
        now_at = situation.routed.get(verdict.slice, situation.active)
        if safer is not None and situation.is_safer(safer, than=now_at):
            by_rung.setdefault(safer, []).append(verdict)
    if not by_rung:
        return None
    to, drifting = next(iter(by_rung.items()))
    decision = Decision(
        Act.ROUTE_SLICES,
        f"{situation.active}: {_in_words(drifting)}",
        to=to,
        slices=tuple(each.slice for each in drifting),
        share=1 - rules.canary_share,
    )
    return _if_it_fits(situation, rules, decision)


def _if_it_fits(situation: Situation, rules: LadderRules, decision: Decision) -> Decision:
    """Return the decision for a safer rung, or what else to do where there is no memory for it."""
    obstacle = decision.to and no_room(situation, decision.to)
    if not obstacle:
        return decision
    reason = f"{decision.reason}; {obstacle}"
    tried = situation.canary.variant if situation.canary is not None else situation.ordered
    if tried is not None:
        # A canary of something smaller must not stand in the way of something safer.
        return Decision(Act.ROLL_BACK, reason, to=tried)
    refused = replace(decision, reason=reason, is_dry=rules.dry_run)
    return Decision(Act.STAY, reason, refused=refused)


def _consider_canary(situation: Situation, rules: LadderRules) -> Decision | None:
    canary = situation.canary
    return None if canary is None else _judge(situation, rules, canary)


def _judge(situation: Situation, rules: LadderRules, canary: Canary) -> Decision:
    """Promote a canary or roll it back, by the same verdicts as those of the active rung."""
    name, terms = canary.variant, canary.terms
    if terms is None and situation.is_safer(situation.home, than=name):
        reason = f"{name}: nothing below {situation.home}, the operator's choice, is tried"
        return Decision(Act.ROLL_BACK, reason, to=name)
    if terms is not None and situation.active != terms.beside:
        reason = f"{name}: {situation.active} was activated, and it was tried beside {terms.beside}"
        return Decision(Act.ROLL_BACK, reason, to=name, cause=Cause.WITHDRAWN)
    if terms is not None and situation.trouble is not None:
        reason = f"{name}: {situation.trouble}"
        return Decision(Act.ROLL_BACK, reason, to=name, cause=Cause.BROKEN)
    # A rung that comes back brings its old drift along; only what was shown since counts.
    drifting = [
        each
        for each in situation.drifting(name, rules.pinned | {ALL})
        if each.confirmed is not None and each.confirmed >= canary.since
    ]
    if drifting:
        return Decision(Act.ROLL_BACK, f"{name}: {_in_words(drifting)}", to=name)
    needed = terms.num_requests if terms else rules.canary_requests
    missing = _missing(situation, rules, name, canary.num_scored, needed, since=canary.since)
    if missing is not None:
        return _keep_trying(situation, rules, canary, missing)
    if wait := _wait(situation, {Act.STEP_UP, Act.PROMOTE}, rules.cool_down_s):
        return Decision(Act.STAY, f"{name} is proven; {wait}")
    scored = f"{canary.num_scored} scored requests as a canary"
    return Decision(Act.PROMOTE, f"{name}: ok after {scored}", to=name)


def _keep_trying(
    situation: Situation, rules: LadderRules, canary: Canary, missing: str
) -> Decision:
    age = situation.now - canary.since
    reason = f"{canary.variant}: {missing}, {age:.0f} s after it became the canary"
    if age >= (canary.terms.patience_s if canary.terms else rules.canary_patience_s):
        return Decision(Act.ROLL_BACK, reason, to=canary.variant)
    return Decision(Act.STAY, reason)


def _give_back(situation: Situation, rules: LadderRules) -> Decision | None:
    """Give routed slices back whose remaining requests have shown the active rung to be sound."""
    if _wait(situation, {Act.ROUTE_SLICES}, rules.cool_down_s):
        return None
    by_rung: dict[str, list[str]] = {}
    for name, rung in sorted(situation.routed.items()):
        verdict = situation.verdict(situation.active, name)
        is_sound = verdict is not None and verdict.state is State.OK
        if is_sound or name not in rules.pinned or not _is_routed(name, rules):
            by_rung.setdefault(rung, []).append(name)
    names = tuple(next(iter(by_rung.values()), ()))
    if not names:
        return None
    reason = f"{situation.active}: {', '.join(names)} ok, or pinned no longer"
    return Decision(Act.GIVE_BACK_SLICES, reason, to=situation.active, slices=names)


def _come_back(situation: Situation, rules: LadderRules) -> Decision | None:
    """Try the next smaller rung again, once this one is proven and time has passed."""
    smaller, active = situation.smaller, situation.active
    if smaller is None or situation.ordered is not None:
        return None
    verdict = situation.verdict(active, ALL)
    if active != FULL:  # the full model has no verdict, and needs none
        num_scored = verdict.n if verdict else 0
        missing = _missing(situation, rules, active, num_scored, rules.return_after_requests)
        if missing is not None:
            return Decision(Act.STAY, f"{active}: {missing}")
    if smaller in situation.failed:
        return Decision(Act.STAY, f"{smaller} is not tried again yet: it cannot be loaded now")
    obstacle = (
        _wait(situation, set(Act), _return_after(situation, smaller, rules))
        or _too_many_returns(situation, rules)
        or no_room(situation, smaller)
    )
    if obstacle:
        return Decision(Act.STAY, f"{smaller} is not tried again yet: {obstacle}")
    reason = f"{active} is sound, and {smaller} was left alone for long enough"
    return Decision(Act.START_CANARY, reason, to=smaller, share=rules.canary_share)


def _is_routed(name: str, rules: LadderRules) -> bool:
    return rules.route_slices and name != ALL and is_known_before(name)


def _missing(
    situation: Situation,
    rules: LadderRules,
    variant: str,
    num_scored: int,
    needed: int,
    *,
    since: float | None = None,
) -> str | None:
    """Return what a rung lacks to be proven, or None; ``ok`` counts where it was shown ``since``.

    A pinned slice that nobody asked for yet does not count.
    """
    if num_scored < needed:
        return f"{num_scored} of {needed} requests are scored"
    whole = situation.verdict(variant, ALL)
    if whole is None:
        return f"{ALL} is not watched"
    pinned = [situation.verdict(variant, name) for name in sorted(rules.pinned)]
    for verdict in (whole, *(each for each in pinned if each is not None and each.n)):
        if verdict.state is not State.OK:
            return f"{verdict.slice} is {verdict.state}"
        if since is not None and (verdict.since is None or verdict.since < since):
            return f"{verdict.slice} was ok before that, and is not shown to be since"
    return None


def _wait(situation: Situation, acts: set[Act], seconds: float) -> str | None:
    last = max((step.time for step in situation.steps if step.act in acts), default=None)
    if last is None or situation.now - last >= seconds:
        return None
    return f"{seconds - (situation.now - last):.0f} s of {seconds:.0f} s are left to wait"


def _return_after(situation: Situation, variant: str, rules: LadderRules) -> float:
    """Return how long a rung is left alone; one that failed again and again, for longer."""
    failures = sum(
        (step.act is Act.STEP_UP and step.left == variant)
        or (step.act is Act.ROLL_BACK and step.to == variant and step.cause is not Cause.WITHDRAWN)
        for step in situation.steps
    )
    doublings: int = min(max(failures - 1, 0), _MAX_DOUBLINGS)
    return rules.return_after_s * float(1 << doublings)


def _too_many_returns(situation: Situation, rules: LadderRules) -> str | None:
    # Only ways down are limited, so that whatever swings to and fro comes to rest on the safe side.
    recent = sum(
        step.act is Act.START_CANARY
        and step.cause is not Cause.ORDERED
        and situation.now - step.time < rules.returns_window_s
        for step in situation.steps
    )
    if recent < rules.max_returns:
        return None
    return f"{recent} tries within {rules.returns_window_s:.0f} s are as many as are allowed"


def check_order(model: str, rung: str, situation: Situation) -> None:
    """Refuse a canary that an operator asks for, where it cannot be tried.

    Raises:
        InvalidRequest: it serves already, or nothing can be shown of it.
        CanaryRunning: there is one.
        NoMemory: it does not fit; says the bytes.
    """
    if name := situation.canary.variant if situation.canary else situation.ordered:
        raise CanaryRunning(f"{model} has a canary ({name}): end it with DELETE on the same path")
    if rung == situation.active:
        raise InvalidRequest(
            f"'variant' is {rung!r}, which serves {model} already: name another one",
            param="variant",
        )
    if rung == FULL:
        raise InvalidRequest(
            f"'variant' is {FULL!r}, which is held against nothing: activate it", param="variant"
        )
    if obstacle := no_room(situation, rung):
        raise NoMemory(f"{obstacle}: unload a variant, or raise 'memory_budget'")


def no_room(situation: Situation, variant: str) -> str | None:
    """Return in words that there is no memory for a rung, or None."""
    needed = situation.needed_bytes.get(variant, 0)
    if situation.free_bytes is None or needed <= situation.free_bytes:
        return None
    return f"{variant} needs {needed:,} bytes of memory, and {situation.free_bytes:,} are free"


def _in_words(drifting: list[Verdict]) -> str:
    return "; ".join(map(_one_in_words, drifting))


def _one_in_words(verdict: Verdict) -> str:
    if (found := verdict.since_build) is not None:
        return (
            f"{verdict.slice} changed since the build (fixed text {found.text!r}: "
            f"{found.distance:.3g} nats a token, limit {found.limit:.3g})"
        )
    known = "since the alarm nothing is scored yet"
    if verdict.n:
        known = (
            f"since the alarm mean {verdict.mean:.3g} nats, at least {verdict.lower:.3g}, "
            f"{verdict.n} scored"
        )
    return f"{verdict.slice} drifts (tolerance {verdict.tolerance or 0:.3g} nats; {known})"
