"""Where a model's ladder stands, and how that changes: by steps, and by what others do to it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gateway.pool.pool import Pool
from gateway.shadow.judge import Judge
from gateway.shadow.ladder import no_room
from gateway.shadow.ladder_canary import CanaryEngines
from gateway.shadow.ladder_hands import LadderHands
from gateway.shadow.ladder_memory import LadderMemory
from gateway.shadow.ladder_order import Ending
from gateway.shadow.ladder_report import LadderReport
from gateway.shadow.ladder_rules import Act, Canary, Decision, LadderRules, Situation
from gateway.shadow.ladder_sight import LadderSight
from gateway.shadow.ladder_standing import Standing

BROKEN_OFF = "withdrawn"
"""What became of a canary's start that an operator ended."""


class LadderSteps:
    """Takes the steps of one model's ladder; times are in seconds since the epoch.

    What it is about to do is kept in the judge's ledger first, so that a process that is killed in
    the middle goes on where it was heading.
    """

    def __init__(
        self,
        model: str,
        rules: LadderRules,
        *,
        pool: Pool,
        judge: Judge,
        memory: LadderMemory,
        hands: LadderHands,
        report: LadderReport,
        sight: LadderSight,
        engines: CanaryEngines,
    ) -> None:
        active = pool.shape(model).active
        self.standing = Standing(home=active, active=active)
        """Changes in the keeper's turn only."""
        self.last: Decision | None = None
        """What was decided at the last look."""
        self.unfinished: Standing | None = None
        """Canary and routes from before a restart, until they are there again."""
        self.goes_to: str | None = None
        """Where what is being carried out leads."""
        self.starting: Canary | None = None
        """The canary whose rung a step of the ladder waits for."""
        self.broken_off: str | None = None
        """The rung whose start as a canary operators who wait for the turn have ended."""
        self._model = model
        self._rules = rules
        self._pool = pool
        self._judge = judge
        self._memory = memory
        self._hands = hands
        self._failures = hands.failures
        self._report = report
        self._sight = sight
        self._engines = engines
        self._is_stepping = False
        self._start: asyncio.Task[str | None] | None = None
        self._num_breaking_off = 0
        self._paused_until = 0.0

    def begin_turn(self) -> None:
        """Take note that no step is under way: one may have been cancelled in the middle."""
        self._is_stepping = False

    def situation(self, now: float) -> Situation:
        """Return all that a decision depends on."""
        return self._sight.situation(self.standing, now)

    def may_do(self, decision: Decision, now: float) -> bool:
        """Return whether nothing holds a decision up; the end of a canary waits for nothing."""
        waits_until = max(self._paused_until, self._failures.until(decision.to or ""))
        return decision.act is Act.ROLL_BACK or now >= waits_until

    def cool_down_left_s(self, now: float) -> float:
        """Return how long nothing is done because something was, or failed."""
        swaps = [
            step.time for step in self.standing.steps if step.act in {Act.STEP_UP, Act.PROMOTE}
        ]
        ends = [max(swaps) + self._rules.cool_down_s] if swaps else []
        ends += [self._paused_until, self._failures.last_until]
        return max(0.0, max(ends) - now)

    async def stand(self, standing: Standing) -> None:
        """Stand there from now on, and keep that."""
        self.standing = standing
        await self._memory.keep(standing)

    async def keep_up(self) -> None:
        """Keep where the ladder stands; what is under way is kept already."""
        if self.unfinished is None and not self._is_stepping:
            await self._memory.keep(self.standing)

    async def follow(self, now: float) -> None:
        """Bring up to date what operators do by hand, what was lost, what the canary has shown."""
        shape, standing = self._pool.shape(self._model), self.standing
        is_by_hand = shape.active != standing.active
        if is_by_hand:
            before, self.unfinished = self.unfinished, None
            if before is not None and before.canary_order is before.canary is not None:
                reason = f"{shape.active} was activated before the canary was there again"
                again = replace(standing, canary=before.canary)
                await self.settle(again, Ending.WITHDRAWN, reason, now)
                standing = self.standing
            standing = replace(
                standing, home=shape.active, active=shape.active, routes={}, origin=None
            )
        canary = self._sight.counted(standing.canary, shape)
        if canary is None and standing.canary is not None and standing.canary.terms is not None:
            reason = f"{standing.canary.variant} was activated before it was proven"
            await self.settle(standing, Ending.SUPERSEDED, reason, now)
            standing = self.standing
        standing = replace(standing, canary=canary)
        lost = {k: rung for k, rung in standing.routes.items() if shape.routes.get(k) != rung}
        self.standing = standing
        if lost:
            await self._lose(lost, now)
        if is_by_hand or lost or self._memory.is_old(now):
            await self.keep_up()

    async def _lose(self, routes: dict[str, str], now: float) -> None:
        """Forget routes whose rung was stopped by hand or given up; try again after a pause."""
        standing = self.standing
        for rung in sorted(set(routes.values())):
            slices = tuple(sorted(k for k, to in routes.items() if to == rung))
            reason = f"{rung} was stopped, or has failed"
            decision = Decision(Act.GIVE_BACK_SLICES, reason, to=standing.active, slices=slices)
            self.tell(decision, "lost")
        self.standing = standing.without_routes(tuple(routes))
        self._paused_until = now + self._rules.cool_down_s
        await self._pool.control.end_routes(self._model, routes)

    async def do(self, decision: Decision, now: float) -> str | None:
        """Do it, and tell of it; return None, or what became of it instead."""
        before = self.standing
        planned, left = before.after(decision, now), before.left_by(decision)
        self._is_stepping = True
        await self._judge.keep()
        await self._memory.keep(planned)
        self.starting = planned.canary if decision.act is Act.START_CANARY else None
        try:
            result = await self._try(decision)
        finally:
            self.starting = None
        self._is_stepping = False
        if result is not None:
            await self._memory.keep(before)
            self.tell(decision, result)
            return result
        self.standing = planned
        if before.ordered is not None and planned.ordered is None and planned.canary is None:
            await self._engines.give_up(before.ordered.variant)
        if planned.canary is not None and decision.act is Act.START_CANARY:
            self._judge.try_again(self._model, planned.canary.variant)
            self._sight.count_from(planned.canary.variant)
            await self._judge.keep()
        self._report.done(decision, left)
        if planned.ended is not None and planned.ended is not before.ended:
            self._report.ended(planned.ended.variant, planned.ended.ending)
        return None

    async def do_again(self, decision: Decision, now: float) -> str | None:
        """Carry out what was done before a restart; return None, or what became of it instead."""
        obstacle = no_room(self.situation(now), decision.to or "")
        told = replace(decision, act=Act.RESTORE)
        if obstacle:
            self.tell(replace(told, reason=f"{decision.reason}; {obstacle}"), "refused")
            return "refused"
        if result := await self._try(decision):
            self.tell(told, result)
            return result
        self._report.done(told, self.standing.active)
        return None

    async def _try(self, decision: Decision) -> str | None:
        left, self.goes_to = self.standing.active, decision.to
        try:
            if decision.act is Act.START_CANARY and decision.to is not None:
                return await self._try_start(decision, decision.to)
            return await self._hands.try_to(decision, leaving=left)
        finally:
            self.goes_to = None

    async def _try_start(self, decision: Decision, rung: str) -> str | None:
        """Begin a canary in a task of its own, so that an operator need not wait for its load."""
        self._engines.bring(rung)
        work = self._hands.try_to(decision, leaving=self.standing.active)
        start = self._start = asyncio.create_task(work)
        if self._num_breaking_off:
            start.cancel()
        try:
            await asyncio.wait({start})
        finally:
            self._start = None
            start.cancel()
            await asyncio.gather(start, return_exceptions=True)
        if not start.cancelled():
            return start.result()
        self.broken_off = rung
        await self._engines.give_up(rung)
        return BROKEN_OFF

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """End the start of a canary that is under way, and let none begin in this block."""
        self._num_breaking_off += 1
        if self._start is not None:
            self._start.cancel()
        try:
            yield
        finally:
            self._num_breaking_off -= 1
            if not self._num_breaking_off:
                self.broken_off = None

    async def settle(self, standing: Standing, ending: Ending, reason: str, now: float) -> None:
        """Note the end of an operator's canary that no step of the ladder brought about."""
        order = standing.canary_order
        await self.stand(standing.without_order(ending, reason, now))
        if order is None:
            return
        self._report.ended(order.variant, ending)
        if ending is not Ending.FAILED:  # a start that failed is told as such
            self.tell(Decision(Act.ROLL_BACK, reason, to=order.variant), ending.value)

    def fail(self, decision: Decision, problem: str, now: float) -> None:
        """Tell that the rung of a decision could not be loaded; it is passed over for a while."""
        self._failures.add(decision.to or "", until=now + self._rules.cool_down_s)
        self.tell(replace(decision, reason=problem), "failed")

    def tell(self, decision: Decision, result: str) -> None:
        """Tell of a decision that was not carried out, or not by the ladder."""
        self._report.tell(decision, self.standing.left_by(decision), result)
