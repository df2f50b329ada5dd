"""The keeper of a model's ladder: looks every second, asks what to do, and has it done."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from gateway.pool.pool import Pool
from gateway.registry import Metrics
from gateway.shadow.judge import EVERY_S, Judge, Publish
from gateway.shadow.ladder import decide
from gateway.shadow.ladder_canary import CanaryEngines
from gateway.shadow.ladder_hands import LadderHands
from gateway.shadow.ladder_memory import LadderMemory
from gateway.shadow.ladder_operator import LadderOperator
from gateway.shadow.ladder_report import LadderReport
from gateway.shadow.ladder_restart import LadderRestart
from gateway.shadow.ladder_rules import Act, Decision, LadderRules
from gateway.shadow.ladder_sight import LadderSight
from gateway.shadow.ladder_steps import LadderSteps
from gateway.shadow.upkeep import again_and_again


class LadderKeeper:
    """One model's ladder; times are in seconds since the epoch.

    ``plan`` stands for the ladder and its rungs: what was kept under another one is worth nothing.
    """

    def __init__(
        self,
        model: str,
        rules: LadderRules,
        *,
        plan: str,
        pool: Pool,
        judge: Judge,
        metrics: Metrics,
        publish: Publish,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model = model
        self.rules = rules
        self._pool = pool
        self._clock = clock
        self._turn = asyncio.Lock()
        """Looks and what operators ask for come one after the other."""
        memory = LadderMemory(model, plan, judge.ledger, clock=clock)
        report = LadderReport(model, rules.pinned, judge=judge, metrics=metrics, publish=publish)
        hands = LadderHands(model, pool, cool_down_s=rules.cool_down_s, clock=clock)
        self._engines = CanaryEngines(model, pool)
        self._sight = LadderSight(
            model, rules, pool=pool, judge=judge, failures=hands.failures, engines=self._engines
        )
        self._steps = LadderSteps(
            model,
            rules,
            pool=pool,
            judge=judge,
            memory=memory,
            hands=hands,
            report=report,
            sight=self._sight,
            engines=self._engines,
        )
        self._restart = LadderRestart(
            model,
            rules,
            self._steps,
            pool=pool,
            judge=judge,
            memory=memory,
            report=report,
            sight=self._sight,
        )
        self.operator = LadderOperator(
            model,
            self._steps,
            self._restart,
            pool=pool,
            sight=self._sight,
            engines=self._engines,
            turn=self._turn,
            clock=clock,
        )

    async def restore(self) -> None:
        """Take up where the ladder stood before a restart; call it before anything is loaded."""
        await self._restart.restore()

    async def run(self) -> None:
        """Look every second, for ever."""
        await again_and_again(self._look_on)

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if not self._pool.is_draining:
                await self.look()

    async def look(self) -> Decision:
        """Decide once, and do it unless this is a dry run; return the decision."""
        async with self._turn:
            return await self._look(self._clock())

    async def _look(self, now: float) -> Decision:
        steps = self._steps
        steps.begin_turn()
        await steps.follow(now)
        if steps.unfinished is not None:
            await self._restart.take_up(steps.unfinished, now)
        else:
            await self.operator.take_up(now)
        decision = decide(steps.situation(now), self.rules)
        if steps.unfinished is not None:
            reason = f"{steps.standing.active} is not ready yet"
            decision = Decision(Act.STAY, f"{reason}: what was done before the restart waits")
        is_news = steps.last is None or _gist(decision) != _gist(steps.last)
        steps.last = decision
        if decision.refused is not None and is_news:
            steps.tell(decision.refused, "refused")
        if decision.act is Act.STAY or decision.to is None:
            return decision
        if decision.is_dry:
            if is_news:
                steps.tell(decision, "dry")
        elif steps.may_do(decision, now):
            await steps.do(decision, now)
        return decision

    async def close(self) -> None:
        """Keep where the ladder stands; what was under way is kept already."""
        await self._engines.close()
        await self._steps.keep_up()

    def status(self) -> dict[str, Any]:
        """Return where the ladder stands, as plain data."""
        found = self._sight.ladder(self._steps.standing, self._steps.last)
        return found | {"cool_down_left_s": self._steps.cool_down_left_s(self._clock())}

    @property
    def is_telling(self) -> bool:
        """Return whether there is anything to be told: a ladder that is kept, or a canary."""
        standing = self._steps.standing
        return (
            not self.rules.is_off or standing.canary_order is not None or standing.ended is not None
        )


def _gist(decision: Decision) -> tuple[object, ...]:
    """Return a decision without its numbers, which change at each look."""
    refused = None if decision.refused is None else _gist(decision.refused)
    return decision.act, decision.to, decision.slices, refused
