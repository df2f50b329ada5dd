"""The keeper of a model's ladder: asks what to do, does it through the pool, and tells why."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from gateway.errors import ModelLoading, NoCanary, StepUnderWay
from gateway.pool.pool import Pool
from gateway.pool.state import State
from gateway.registry import Metrics
from gateway.shadow.judge import EVERY_S, Judge, Publish
from gateway.shadow.ladder import check_order, decide, no_room
from gateway.shadow.ladder_canary import CanaryEngines
from gateway.shadow.ladder_hands import LadderHands
from gateway.shadow.ladder_memory import LadderMemory
from gateway.shadow.ladder_order import Ending, Outcome, Terms
from gateway.shadow.ladder_report import LadderReport
from gateway.shadow.ladder_rules import Act, Canary, Cause, Decision, LadderRules, Situation
from gateway.shadow.ladder_sight import LadderSight
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.upkeep import again_and_again

_TURN_S = 1.0
"""How long an operator waits for the ladder's turn; a step may build and load for minutes."""


class LadderKeeper:
    """One model's ladder; times are in seconds since the epoch.

    What it is about to do is kept in the judge's ledger first, so that a process that is killed in
    the middle goes on where it was heading. ``plan`` stands for the ladder and its rungs: what was
    kept under another one is worth nothing.
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
        self.last: Decision | None = None
        """What was decided at the last look."""
        self._pool = pool
        self._judge = judge
        self._report = LadderReport(
            model, rules.pinned, judge=judge, metrics=metrics, publish=publish
        )
        self._clock = clock
        active = pool.shape(model).active
        self._standing = Standing(home=active, active=active)
        self._memory = LadderMemory(model, plan, judge.ledger, clock=clock)
        self._unfinished: Standing | None = None
        """Canary and routes from before a restart, until they are there again."""
        self._is_stepping = False
        self._goes_to: str | None = None
        """Where what is being carried out leads."""
        self._paused_until = 0.0
        self._hands = LadderHands(model, pool, cool_down_s=rules.cool_down_s, clock=clock)
        self._failures = self._hands.failures
        self._engines = CanaryEngines(model, pool)
        self._sight = LadderSight(
            model, rules, pool=pool, judge=judge, failures=self._failures, engines=self._engines
        )
        self._turn = asyncio.Lock()
        """Looks and what operators ask for come one after the other."""

    async def restore(self) -> None:
        """Take up where the ladder stood before a restart; call it before anything is loaded."""
        shape = self._pool.shape(self.model)
        found = await self._memory.read(shape)
        if found is None:
            await self._tell_of_lost(self._memory.lost)
            return
        self._standing = replace(found, canary=None, routes={})
        self._unfinished = found if found.canary or found.routes else None
        if found.active != shape.active:
            self._pool.begin_at(self.model, found.active)
            why = next((s.reason for s in reversed(found.steps) if s.to == found.active), "")
            reason = f"{found.active} served before the restart: {why}"
            self._report.done(Decision(Act.RESTORE, reason, to=found.active), shape.active)

    async def _tell_of_lost(self, lost: Outcome | None) -> None:
        if lost is not None:
            self._standing = replace(self._standing, ended=lost)
            self._tell(Decision(Act.ROLL_BACK, lost.reason, to=lost.variant), lost.ending.value)
            self._report.ended(lost.variant, lost.ending)
        await self._memory.keep(self._standing)

    async def run(self) -> None:
        """Look every second, for ever."""
        await again_and_again(self._look_on)

    async def look(self) -> Decision:
        """Decide once, and do it unless this is a dry run; return the decision."""
        async with self._turn:
            return await self._look(self._clock())

    async def order(self, rung: str, terms: Terms) -> None:
        """Put a rung on trial as an operator asks; it is loaded first, which nobody waits for.

        Raises:
            ApiError: it cannot be tried now, or has no room.
        """
        async with self._soon():
            now = self._clock()
            await self._follow(now)
            if self._unfinished is not None:
                raise ModelLoading(f"{self.model} is loading: try again in a few seconds")
            check_order(self.model, rung, self._situation(now))
            ordered = Canary(rung, now, 0, replace(terms, beside=self._standing.active))
            self._standing = replace(self._standing, ordered=ordered, ended=None)
            await self._memory.keep(self._standing)
            self._tell(_start_of(ordered), "ordered")
            self._engines.is_loaded(rung)

    async def withdraw(self) -> None:
        """End the canary, whoever asked for it.

        Raises:
            NoCanary: there is none.
            StepUnderWay: the ladder is in the middle of something that takes long.
        """
        async with self._soon():
            now, why = self._clock(), "an operator ended it"
            await self._follow(now)
            before, standing = self._unfinished, self._standing
            if before is not None and before.canary is not None:
                await self._withdraw_unfinished(before, before.canary, why, now)
            elif standing.ordered is not None:
                await self._engines.give_up(standing.ordered.variant)
                await self._settle(standing, Ending.WITHDRAWN, why, now)
            elif standing.canary is not None:
                rung = standing.canary.variant
                await self._do(
                    Decision(Act.ROLL_BACK, f"{rung}: {why}", rung, cause=Cause.WITHDRAWN), now
                )
            else:
                raise NoCanary(f"{self.model} has no canary: begin one with POST on the same path")

    async def _withdraw_unfinished(
        self, before: Standing, canary: Canary, why: str, now: float
    ) -> None:
        """End a canary from before a restart, which takes no requests yet."""
        rung = canary.variant
        decision = Decision(Act.ROLL_BACK, f"{rung}: {why}", rung, cause=Cause.WITHDRAWN)
        self._standing = replace(self._standing, canary=canary).after(decision, now)
        self._unfinished = replace(before, canary=None)
        # Its routes are not there again yet, and must outlive another restart.
        await self._memory.keep(replace(self._standing, routes=before.routes))
        self._report.done(decision, self._standing.active)
        if canary.terms is not None:
            self._report.ended(rung, Ending.WITHDRAWN)

    async def _look(self, now: float) -> Decision:
        self._is_stepping = False
        await self._follow(now)
        if self._unfinished is not None:
            await self._take_up(self._unfinished, now)
        else:
            await self._take_order(now)
        decision = decide(self._situation(now), self.rules)
        if self._unfinished is not None:
            reason = f"{self._standing.active} is not ready yet"
            decision = Decision(Act.STAY, f"{reason}: what was done before the restart waits")
        is_news = self.last is None or _gist(decision) != _gist(self.last)
        self.last = decision
        if decision.refused is not None and is_news:
            self._tell(decision.refused, "refused")
        if decision.act is Act.STAY or decision.to is None:
            return decision
        if decision.is_dry:
            if is_news:
                self._tell(decision, "dry")
        elif decision.act is Act.ROLL_BACK or now >= self._paused(decision.to):
            await self._do(decision, now)
        return decision

    async def close(self) -> None:
        """Keep where the ladder stands; what was under way is kept already."""
        await self._engines.close()
        await self._keep_up()

    async def _keep_up(self) -> None:
        if self._unfinished is None and not self._is_stepping:
            await self._memory.keep(self._standing)

    def status(self) -> dict[str, Any]:
        """Return where the ladder stands, as plain data."""
        found = self._sight.ladder(self._standing, self.last)
        return found | {"cool_down_left_s": self._cool_down_left_s()}

    def canary(self) -> dict[str, Any]:
        """Return the canary and the end of the last one that an operator asked for."""
        standing, state = self._standing, "running"
        canary = standing.canary
        if self._unfinished is not None and self._unfinished.canary is not None:
            canary, state = self._unfinished.canary, "waiting"
        elif standing.ordered is not None:
            canary, state = standing.ordered, "loading"
        shown = None if canary is None else self._sight.canary(canary, state, self.last)
        ended = None if standing.ended is None else asdict(standing.ended)
        return {"model": self.model, "canary": shown, "last": ended}

    @property
    def is_telling(self) -> bool:
        """Return whether there is anything to be told: a ladder that is kept, or a canary."""
        standing = self._standing
        return (
            not self.rules.is_off or standing.canary_order is not None or standing.ended is not None
        )

    # -- inside -----------------------------------------------------------------------------

    @asynccontextmanager
    async def _soon(self) -> AsyncIterator[None]:
        """Take the turn for an operator, who does not wait for a step."""
        try:
            async with asyncio.timeout(_TURN_S):
                await self._turn.acquire()
        except TimeoutError:
            step = f"a step to {self._goes_to}" if self._goes_to else "a look at the ladder"
            raise StepUnderWay(
                f"{step} of {self.model} is under way: try again when it has ended"
            ) from None
        try:
            yield
        finally:
            self._turn.release()

    def _paused(self, rung: str) -> float:
        return max(self._paused_until, self._failures.until(rung))

    def _cool_down_left_s(self) -> float:
        """Return how long nothing is done because something was, or failed."""
        swaps = [
            step.time for step in self._standing.steps if step.act in {Act.STEP_UP, Act.PROMOTE}
        ]
        ends = [max(swaps) + self.rules.cool_down_s] if swaps else []
        ends += [self._paused_until, self._failures.last_until]
        return max(0.0, max(ends) - self._clock())

    async def _look_on(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            if not self._pool.is_draining:
                await self.look()

    async def _follow(self, now: float) -> None:
        """Bring up to date what operators do by hand, what was lost, what the canary has shown."""
        shape, standing = self._pool.shape(self.model), self._standing
        is_by_hand = shape.active != standing.active
        if is_by_hand:
            before, self._unfinished = self._unfinished, None
            if before is not None and before.canary_order is before.canary is not None:
                reason = f"{shape.active} was activated before the canary was there again"
                again = replace(standing, canary=before.canary)
                await self._settle(again, Ending.WITHDRAWN, reason, now)
                standing = self._standing
            standing = replace(
                standing, home=shape.active, active=shape.active, routes={}, origin=None
            )
        canary = self._sight.counted(standing.canary, shape)
        if canary is None and standing.canary is not None and standing.canary.terms is not None:
            reason = f"{standing.canary.variant} was activated before it was proven"
            await self._settle(standing, Ending.SUPERSEDED, reason, now)
            standing = self._standing
        standing = replace(standing, canary=canary)
        lost = {k: rung for k, rung in standing.routes.items() if shape.routes.get(k) != rung}
        self._standing = standing
        if lost:
            await self._lose(lost, now)
        if is_by_hand or lost or self._memory.is_old(now):
            await self._keep_up()

    async def _lose(self, routes: dict[str, str], now: float) -> None:
        """Forget routes whose rung was stopped by hand or given up; try again after a pause."""
        standing = self._standing
        for rung in sorted(set(routes.values())):
            slices = tuple(sorted(k for k, to in routes.items() if to == rung))
            reason = f"{rung} was stopped, or has failed"
            decision = Decision(Act.GIVE_BACK_SLICES, reason, to=standing.active, slices=slices)
            self._tell(decision, "lost")
        self._standing = standing.without_routes(tuple(routes))
        self._paused_until = now + self.rules.cool_down_s
        await self._pool.end_routes(self.model, routes)

    def _situation(self, now: float) -> Situation:
        return self._sight.situation(self._standing, now)

    async def _take_up(self, before: Standing, now: float) -> None:
        """Bring back canary and routes of before a restart, once the active rung is there."""
        if self._pool.find(self.model).state is not State.READY:
            return
        for rung in sorted(set(before.routes.values())):
            slices = tuple(sorted(k for k, to in before.routes.items() if to == rung))
            share = 1 - self.rules.canary_share
            reason = f"{', '.join(slices)} went to {rung} before the restart"
            again = Decision(Act.ROUTE_SLICES, reason, to=rung, slices=slices, share=share)
            if await self._do_again(again, now):
                routes = {**self._standing.routes, **dict.fromkeys(slices, rung)}
                self._standing = self._standing.with_routes(routes)
        if before.canary is not None:
            await self._take_up_canary(before.canary, now)
        self._unfinished = None
        await self._memory.keep(self._standing)

    async def _take_up_canary(self, canary: Canary, now: float) -> None:
        rung, terms = canary.variant, canary.terms
        reason = f"{rung} was the canary before the restart"
        share = terms.share if terms else self.rules.canary_share
        again = Decision(Act.START_CANARY, reason, to=rung, share=share)
        if await self._do_again(again, now):
            # Who was killed while it began may have left evidence from before it.
            self._judge.try_again(self.model, rung, unless_since=canary.since)
            self._sight.count_from(rung, canary.num_scored)
            self._standing = replace(self._standing, canary=canary)
        elif terms is not None:
            before = replace(self._standing, canary=canary)
            why = f"{rung} could not be taken up after the restart"
            await self._settle(before, Ending.FAILED, why, now)

    async def _take_order(self, now: float) -> None:
        """Begin what an operator asked to be tried, once its engines are there."""
        ordered = self._standing.ordered
        if ordered is None or ordered.terms is None:
            return
        rung, active = ordered.variant, self._standing.active
        if not self._engines.are_loading and self._pool.find(self.model).state is not State.READY:
            return  # after a restart what serves is loaded first
        if active != ordered.terms.beside:
            await self._engines.give_up(rung)
            reason = f"{active} was activated while {rung} was loading"
            await self._settle(self._standing, Ending.WITHDRAWN, reason, now)
        elif self._engines.is_loaded(rung):
            start, problem = _start_of(ordered), self._engines.take_result()
            if problem is not None:
                self._failures.add(rung, until=now + self.rules.cool_down_s)
                self._tell(replace(start, reason=problem), "failed")
            elif result := await self._do(start, now):
                problem = f"{rung} was loaded, and its start was {result}"
            if problem is not None:
                await self._settle(self._standing, Ending.FAILED, problem, now)

    async def _settle(self, standing: Standing, ending: Ending, reason: str, now: float) -> None:
        """Note the end of an operator's canary that no step of the ladder brought about."""
        order = standing.canary_order
        self._standing = standing.without_order(ending, reason, now)
        await self._memory.keep(self._standing)
        if order is None:
            return
        self._report.ended(order.variant, ending)
        if ending is not Ending.FAILED:  # a start that failed is told as such
            self._tell(Decision(Act.ROLL_BACK, reason, to=order.variant), ending.value)

    async def _do_again(self, decision: Decision, now: float) -> bool:
        """Carry out what was done before; return whether that went well."""
        obstacle = no_room(self._situation(now), decision.to or "")
        told = replace(decision, act=Act.RESTORE)
        if obstacle:
            self._tell(replace(told, reason=f"{decision.reason}; {obstacle}"), "refused")
            return False
        if result := await self._try(decision):
            self._tell(told, result)
            return False
        self._report.done(told, self._standing.active)
        return True

    async def _do(self, decision: Decision, now: float) -> str | None:
        """Do it, and tell of it; return None, or what became of it instead."""
        before = self._standing
        planned, left = before.after(decision, now), before.left_by(decision)
        self._is_stepping = True
        await self._judge.keep()
        await self._memory.keep(planned)
        result = await self._try(decision)
        self._is_stepping = False
        if result is not None:
            await self._memory.keep(before)
            self._tell(decision, result)
            return result
        self._standing = planned
        if before.ordered is not None and planned.ordered is None and planned.canary is None:
            await self._engines.give_up(before.ordered.variant)
        if planned.canary is not None and decision.act is Act.START_CANARY:
            self._judge.try_again(self.model, planned.canary.variant)
            self._sight.count_from(planned.canary.variant)
            await self._judge.keep()
        self._report.done(decision, left)
        if planned.ended is not None and planned.ended is not before.ended:
            self._report.ended(planned.ended.variant, planned.ended.ending)
        return None

    async def _try(self, decision: Decision) -> str | None:
        left, self._goes_to = self._standing.active, decision.to
        try:
            return await self._hands.try_to(decision, leaving=left)
        finally:
            self._goes_to = None

    def _tell(self, decision: Decision, result: str) -> None:
        self._report.tell(decision, self._standing.left_by(decision), result)


def _start_of(ordered: Canary) -> Decision:
    share = ordered.terms.share if ordered.terms else 0.0
    return Decision(
        Act.START_CANARY,
        f"an operator asked for {share:.1%} of the requests",
        to=ordered.variant,
        share=share,
        cause=Cause.ORDERED,
        terms=ordered.terms,
    )


def _gist(decision: Decision) -> tuple[object, ...]:
    """Return a decision without its numbers, which change at each look."""
    refused = None if decision.refused is None else _gist(decision.refused)
    return decision.act, decision.to, decision.slices, refused
