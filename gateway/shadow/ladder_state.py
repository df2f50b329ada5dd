"""The form in which a ladder's standing survives a restart, and when it is worth nothing."""

import hashlib
import json
import logging
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.shadow.ladder_order import MAX_SHARE, Ending, Outcome, Terms
from gateway.shadow.ladder_rules import Act, Canary, Cause, LadderRules, Step
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.monitor_state import Count, Moment
from gateway.specs import ModelSpec, VariantSpec
from gateway.validation import first_problem

logger = logging.getLogger(__name__)

VERSION: Literal[1] = 1


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _StepState(_Record):
    time: Moment
    act: Act
    left: str
    to: str
    slices: tuple[str, ...]
    reason: str
    cause: Cause | None = None


class _TermsState(_Record):
    share: Annotated[float, Field(gt=0, le=MAX_SHARE)]
    num_requests: Count
    patience_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    beside: str


class _CanaryState(_Record):
    variant: str
    since: Moment
    num_scored: Count
    terms: _TermsState | None = None


class _OutcomeState(_Record):
    variant: str
    since: Moment
    time: Moment
    ending: Ending
    reason: str


class _LadderState(_Record):
    version: Literal[1]
    plan: str
    home: str
    active: str
    steps: tuple[_StepState, ...]
    canary: _CanaryState | None
    routes: dict[str, str]
    origin: str | None = None
    ordered: _CanaryState | None = None
    ended: _OutcomeState | None = None

    def rungs(self) -> set[str]:
        """Return the rungs that it speaks of now."""
        named = {self.home, self.active, *self.routes.values()}
        return named | {each.variant for each in (self.canary, self.ordered) if each}


def plan_of(model: ModelSpec, rules: LadderRules) -> str:
    """Return what stands for a ladder, what its rungs are made of, and whether it is a dry run."""
    mode = "off" if rules.is_off else rules.dry_run
    plan = [mode, *(_rung(each) for each in model.variants)]
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def to_state(standing: Standing, plan: str) -> dict[str, Any]:
    """Return a standing as plain data fit for JSON."""
    return _LadderState(
        version=VERSION,
        plan=plan,
        home=standing.home,
        active=standing.active,
        steps=tuple(_StepState.model_validate(asdict(step)) for step in standing.steps),
        canary=_canary_state(standing.canary),
        routes=dict(standing.routes),
        origin=standing.origin,
        ordered=_canary_state(standing.ordered),
        ended=_OutcomeState.model_validate(asdict(standing.ended)) if standing.ended else None,
    ).model_dump(mode="json")


def from_state(
    state: object, *, plan: str, ladder: tuple[str, ...], home: str, now: float
) -> Standing | None:
    """Return the standing that was kept; None: it cannot be read, or is about something else.

    It is about something else where the ladder, a recipe or the mode changed since, or where it
    began at another rung than the one that the settings name, ``home``.
    """
    try:
        kept = _LadderState.model_validate(state)
    except ValidationError as error:
        where, reason = first_problem(error)
        logger.warning("the ladder begins anew: %r of what was kept: %s", where or "state", reason)
        return None
    origin = kept.origin or kept.home
    if kept.plan != plan or origin != home or not kept.rungs() <= set(ladder):
        logger.info("the ladder begins anew: what was kept is about another ladder, recipe or mode")
        return None
    return Standing(
        kept.home,
        kept.active,
        tuple(_step(each, now) for each in kept.steps),
        _canary(kept.canary, now),
        kept.routes,
        kept.origin,
        _canary(kept.ordered, now),
        Outcome(**kept.ended.model_dump()) if kept.ended else None,
    )


def lost_order(state: object, now: float) -> Outcome | None:
    """Return the end of an operator's canary that was under way on what is another ladder now."""
    try:
        kept = _LadderState.model_validate(state)
    except ValidationError:
        return None
    under_way = [each for each in (kept.canary, kept.ordered) if each and each.terms]
    if not under_way:
        return None
    reason = "the settings name another ladder, recipe, mode or active rung since the restart"
    order = under_way[0]
    return Outcome(order.variant, min(order.since, now), now, Ending.WITHDRAWN, reason)


def _step(said: _StepState, now: float) -> Step:
    # A clock that was set back must not hold up a step until it has caught up.
    time = min(said.time, now)
    return Step(time, said.act, said.left, said.to, said.slices, said.reason, said.cause)


def _canary(said: _CanaryState | None, now: float) -> Canary | None:
    if said is None:
        return None
    terms = Terms(**said.terms.model_dump()) if said.terms else None
    return Canary(said.variant, min(said.since, now), said.num_scored, terms)


def _canary_state(canary: Canary | None) -> _CanaryState | None:
    return None if canary is None else _CanaryState.model_validate(asdict(canary))


def _rung(spec: VariantSpec) -> list[Any]:
    said = spec.settings
    digest = FULL if said.recipe == FULL else load_recipe(said.recipe).digest
    return [spec.variant, said.model, said.revision, digest, said.engine, said.urls]
