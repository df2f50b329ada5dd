"""The form in which a ladder's standing survives a restart, and when it is worth nothing."""

import hashlib
import json
import logging
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from compression.presets import load_recipe
from compression.recipe import FULL
from gateway.shadow.ladder_rules import Act, Canary, LadderRules, Step
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.monitor_state import Count, Moment
from gateway.specs import ModelSpec, VariantSpec

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


class _CanaryState(_Record):
    variant: str
    since: Moment
    num_scored: Count


class _LadderState(_Record):
    version: Literal[1]
    plan: str
    home: str
    active: str
    steps: tuple[_StepState, ...]
    canary: _CanaryState | None
    routes: dict[str, str]

    def rungs(self) -> set[str]:
        """Return the rungs that it speaks of now."""
        named = {self.home, self.active, *self.routes.values()}
        return named | ({self.canary.variant} if self.canary else set())


def plan_of(model: ModelSpec, rules: LadderRules) -> str:
    """Return what stands for a ladder, what its rungs are made of, and whether it is a dry run."""
    plan = [rules.dry_run, *(_rung(each) for each in model.variants)]
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def to_state(standing: Standing, plan: str) -> dict[str, Any]:
    """Return a standing as plain data fit for JSON."""
    return _LadderState(
        version=VERSION,
        plan=plan,
        home=standing.home,
        active=standing.active,
        steps=tuple(_StepState.model_validate(asdict(step)) for step in standing.steps),
        canary=_CanaryState.model_validate(asdict(standing.canary)) if standing.canary else None,
        routes=dict(standing.routes),
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
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"])) or "state"
        logger.warning("the ladder begins anew: %r of what was kept: %s", where, problem["msg"])
        return None
    if kept.plan != plan or kept.home != home or not kept.rungs() <= set(ladder):
        logger.info("the ladder begins anew: what was kept is about another ladder, recipe or mode")
        return None
    # A clock that was set back must not hold up a step until it has caught up.
    steps = [Step(min(s.time, now), s.act, s.left, s.to, s.slices, s.reason) for s in kept.steps]
    canary = None
    if (said := kept.canary) is not None:
        canary = Canary(said.variant, min(said.since, now), said.num_scored)
    return Standing(kept.home, kept.active, tuple(steps), canary, kept.routes)


def _rung(spec: VariantSpec) -> list[Any]:
    said = spec.settings
    digest = FULL if said.recipe == FULL else load_recipe(said.recipe).digest
    return [spec.variant, said.model, said.revision, digest, said.engine, said.urls]
