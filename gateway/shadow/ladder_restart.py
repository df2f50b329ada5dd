"""What a restart does to a model's ladder: where it stood is found, and taken up again."""

from dataclasses import replace

from gateway.pool.pool import Pool
from gateway.pool.state import State
from gateway.shadow.judge import Judge
from gateway.shadow.ladder_memory import LadderMemory
from gateway.shadow.ladder_order import Ending, Outcome
from gateway.shadow.ladder_report import LadderReport
from gateway.shadow.ladder_rules import Act, Canary, Cause, Decision, LadderRules
from gateway.shadow.ladder_sight import LadderSight
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.ladder_steps import BROKEN_OFF, LadderSteps


class LadderRestart:
    """Brings one model's ladder back to where it stood before the process ended."""

    def __init__(
        self,
        model: str,
        rules: LadderRules,
        steps: LadderSteps,
        *,
        pool: Pool,
        judge: Judge,
        memory: LadderMemory,
        report: LadderReport,
        sight: LadderSight,
    ) -> None:
        self._model = model
        self._rules = rules
        self._steps = steps
        self._pool = pool
        self._judge = judge
        self._memory = memory
        self._report = report
        self._sight = sight

    async def restore(self) -> None:
        """Let the rung serve that did; call it before anything is loaded."""
        shape = self._pool.shape(self._model)
        found = await self._memory.read(shape)
        if found is None:
            await self._tell_of_lost(self._memory.lost)
            return
        self._steps.standing = replace(found, canary=None, routes={})
        self._steps.unfinished = found if found.canary or found.routes else None
        if found.active != shape.active:
            self._pool.control.begin_at(self._model, found.active)
            why = next((s.reason for s in reversed(found.steps) if s.to == found.active), "")
            reason = f"{found.active} served before the restart: {why}"
            self._report.done(Decision(Act.RESTORE, reason, to=found.active), shape.active)

    async def _tell_of_lost(self, lost: Outcome | None) -> None:
        standing = self._steps.standing
        if lost is not None:
            standing = replace(standing, ended=lost)
            told = Decision(Act.ROLL_BACK, lost.reason, to=lost.variant)
            self._steps.tell(told, lost.ending.value)
            self._report.ended(lost.variant, lost.ending)
        await self._steps.stand(standing)

    async def take_up(self, before: Standing, now: float) -> None:
        """Bring canary and routes back, once the active rung is there."""
        if self._pool.find(self._model).state is not State.READY:
            return
        steps = self._steps
        for rung in sorted(set(before.routes.values())):
            slices = tuple(sorted(k for k, to in before.routes.items() if to == rung))
            share = 1 - self._rules.canary_share
            reason = f"{', '.join(slices)} went to {rung} before the restart"
            again = Decision(Act.ROUTE_SLICES, reason, to=rung, slices=slices, share=share)
            if await steps.do_again(again, now) is None:
                routes = {**steps.standing.routes, **dict.fromkeys(slices, rung)}
                steps.standing = steps.standing.with_routes(routes)
        if before.canary is not None and not await self._take_up_canary(before.canary, now):
            steps.unfinished = replace(before, routes={})
            return
        steps.unfinished = None
        await steps.stand(steps.standing)

    async def _take_up_canary(self, canary: Canary, now: float) -> bool:
        """Return whether anything came of it: an operator who breaks it off notes that as well."""
        rung, terms, steps = canary.variant, canary.terms, self._steps
        reason = f"{rung} was the canary before the restart"
        share = terms.share if terms else self._rules.canary_share
        again = Decision(Act.START_CANARY, reason, to=rung, share=share)
        result = await steps.do_again(again, now)
        if result is None:
            # Who was killed while it began may have left evidence from before it.
            self._judge.try_again(self._model, rung, unless_since=canary.since)
            self._sight.count_from(rung, canary.num_scored)
            steps.standing = replace(steps.standing, canary=canary)
        elif result != BROKEN_OFF and terms is not None:
            before = replace(steps.standing, canary=canary)
            why = f"{rung} could not be taken up after the restart"
            await steps.settle(before, Ending.FAILED, why, now)
        return result != BROKEN_OFF

    async def withdraw(self, before: Standing, canary: Canary, why: str, now: float) -> None:
        """End a canary that takes no requests yet."""
        rung, steps = canary.variant, self._steps
        decision = Decision(Act.ROLL_BACK, f"{rung}: {why}", rung, cause=Cause.WITHDRAWN)
        steps.standing = replace(steps.standing, canary=canary).after(decision, now)
        steps.unfinished = replace(before, canary=None)
        # Routes that are not there again yet must outlive another restart.
        routes = {**before.routes, **steps.standing.routes}
        await self._memory.keep(replace(steps.standing, routes=routes))
        self._report.done(decision, steps.standing.active)
        if canary.terms is not None:
            self._report.ended(rung, Ending.WITHDRAWN)
