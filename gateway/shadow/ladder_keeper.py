"""The keeper of a model's ladder: asks what to do, does it through the pool, and tells why."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from gateway.errors import NarrowgateError
from gateway.pool.pool import Pool
from gateway.registry import Metrics
from gateway.shadow.judge import EVERY_S, Judge, Publish
from gateway.shadow.ladder import decide
from gateway.shadow.ladder_rules import Act, Canary, Decision, LadderRules, Situation, Step
from gateway.shadow.slices import ALL
from gateway.shadow.upkeep import again_and_again

logger = logging.getLogger(__name__)

_REASONS: Mapping[Act, str] = MappingProxyType(
    {
        Act.STEP_UP: "drift",
        Act.START_CANARY: "return",
        Act.PROMOTE: "proven",
        Act.ROLL_BACK: "not_proven",
    }
)
"""The metric's closed set; the event has the numbers."""

MAX_STEPS = 256
"""Steps that are remembered; far more than the rules allow within the times they look back."""


class LadderKeeper:
    """One model's ladder; times are in seconds since the epoch."""

    def __init__(
        self,
        model: str,
        rules: LadderRules,
        *,
        pool: Pool,
        judge: Judge,
        metrics: Metrics,
        publish: Publish,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        self.rules = rules
        self.last: Decision | None = None
        """What was decided at the last look."""
        self._pool = pool
        self._judge = judge
        self._metrics = metrics
        self._publish = publish
        self._clock = clock
        self._active = self._home = pool.shape(model).active
        self._steps: list[Step] = []
        self._canary: Canary | None = None
        self._scored_before = 0
        self._paused_until = 0.0

    async def run(self) -> None:
        """Look every second, for ever."""
        await again_and_again(self._keep)

    async def look(self) -> Decision:
        """Decide once, and do it unless this is a dry run; return the decision."""
        self._follow()
        now = self._clock()
        decision = decide(self._situation(now), self.rules)
        is_news = self.last is None or _gist(decision) != _gist(self.last)
        self.last = decision
        if decision.act is Act.STAY or decision.to is None:
            return decision
        if decision.is_dry:
            if is_news:
                self._tell(decision, decision.to, "dry")
        elif now >= self._paused_until:
            await self._do(decision, decision.to, now)
        return decision

    def status(self) -> dict[str, Any]:
        """Return where the ladder stands, as plain data."""
        shape, decision = self._pool.shape(self.model), self.last
        return {
            "rungs": list(shape.ladder),
            "active": shape.active,
            "home": self._home,
            "canary": None if self._canary is None else asdict(self._canary),
            "dry_run": self.rules.dry_run,
            "cool_down_left_s": self._cool_down_left_s(),
            "decision": None if decision is None else decision.name,
            "reason": None if decision is None else decision.reason,
            "steps": [asdict(step) for step in self._steps[-10:]],
        }

    # -- inside -----------------------------------------------------------------------------

    def _cool_down_left_s(self) -> float:
        """Return how long nothing is done because something was, or failed."""
        swaps = [step.time for step in self._steps if step.act in {Act.STEP_UP, Act.PROMOTE}]
        ends = [max(swaps) + self.rules.cool_down_s] if swaps else []
        return max(0.0, max([*ends, self._paused_until]) - self._clock())

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if not self._pool.is_draining:
                await self.look()

    def _follow(self) -> None:
        """Bring up to date what operators do by hand, and what the canary has shown."""
        shape = self._pool.shape(self.model)
        if shape.active != self._active:
            self._active = self._home = shape.active
        if self._canary is None:
            return
        variant = self._canary.variant
        if shape.canary != variant:
            self._canary = None
            return
        num_scored = self._judge.num_scored(self.model, variant) - self._scored_before
        # A count that fell began anew with another digest.
        self._scored_before = min(self._scored_before, self._scored_before + num_scored)
        self._canary = Canary(variant, self._canary.since, max(0, num_scored))

    def _situation(self, now: float) -> Situation:
        shape, room = self._pool.shape(self.model), self._pool.room(self.model)
        return Situation(
            now=now,
            ladder=shape.ladder,
            active=shape.active,
            home=self._home,
            verdicts={
                name: found
                for name in shape.ladder
                if (found := self._judge.verdicts(self.model, name))
            },
            steps=self._steps,
            canary=self._canary,
            free_bytes=room.free,
            needed_bytes=room.needed,
        )

    async def _do(self, decision: Decision, to: str, now: float) -> None:
        active = self._pool.shape(self.model).active
        try:
            await self._carry_out(decision, to, now)
        except NarrowgateError as error:
            # The rung that serves goes on; the same again at once would fail the same way.
            self._paused_until = self._clock() + self.rules.cool_down_s
            logger.error("%s: %s to %s failed: %s", self.model, decision.act, to, error)
            self._tell(decision, to, "failed", active)
            return
        self._steps = [*self._steps, Step(now, decision.act, active, to)][-MAX_STEPS:]
        steps = self._metrics.counters["ladder_steps_total"]
        steps.labels(self.model, active, to, _REASONS[decision.act]).inc()
        self._tell(decision, to, "done", active)

    async def _carry_out(self, decision: Decision, to: str, now: float) -> None:
        name = f"{self.model}@{to}"
        match decision.act:
            case Act.STEP_UP | Act.PROMOTE:
                await self._pool.activate(name)
                self._active = to
                await self._end_canary()
            case Act.START_CANARY:
                await self._pool.start_canary(name, decision.share)
                self._judge.try_again(self.model, to)
                self._scored_before = self._judge.num_scored(self.model, to)
                self._canary = Canary(to, now, 0)
            case Act.ROLL_BACK:
                await self._end_canary()
            case _:
                raise ValueError(f"{decision.act} is not done here")

    async def _end_canary(self) -> None:
        self._canary = None
        await self._pool.end_canary(self.model)

    def _tell(self, decision: Decision, to: str, result: str, active: str | None = None) -> None:
        left = active or self._pool.shape(self.model).active
        logger.warning("%s: %s (%s): %s", self.model, decision.name, result, decision.reason)
        tried = to if decision.act is not Act.STEP_UP else left
        slices = self.rules.pinned | {ALL}
        alarms = [each for each in self._judge.alarms(self.model, tried) if each.slice in slices]
        whole = self._judge.verdicts(self.model, tried).get(ALL)
        evidence = alarms or ([] if whole is None else [whole])
        fields = {
            "model": self.model,
            "act": decision.name,
            "from": left,
            "to": to,
            "result": result,
            "reason": decision.reason,
            "evidence": [asdict(each) for each in evidence],
        }
        self._publish("ladder_step", fields)


def _gist(decision: Decision) -> tuple[Act, str | None]:
    """Return a decision without its numbers, which change at each look."""
    return decision.act, decision.to
