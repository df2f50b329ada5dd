"""The keeper of a model's ladder: asks what to do, does it through the pool, and tells why."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from gateway.errors import NarrowgateError, Superseded
from gateway.pool.pool import Pool
from gateway.pool.state import Shape, State
from gateway.registry import Metrics
from gateway.shadow.judge import EVERY_S, Judge, Publish
from gateway.shadow.ladder import decide, no_room
from gateway.shadow.ladder_failures import Failures
from gateway.shadow.ladder_report import LadderReport
from gateway.shadow.ladder_rules import Act, Canary, Decision, LadderRules, Situation
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.ladder_state import from_state, to_state
from gateway.shadow.upkeep import again_and_again

logger = logging.getLogger(__name__)

_KEEP_EVERY_S = 30.0
"""How old the count of a canary's scored requests may be in the ledger."""


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
        self._plan = plan
        self._pool = pool
        self._judge = judge
        self._report = LadderReport(
            model, rules.pinned, judge=judge, metrics=metrics, publish=publish
        )
        self._clock = clock
        active = pool.shape(model).active
        self._standing = Standing(home=active, active=active)
        self._kept: Standing | None = None
        """What the ledger has."""
        self._kept_at = clock()
        self._unfinished: Standing | None = None
        """Canary and routes from before a restart, until they are there again."""
        self._is_stepping = False
        self._scored_before = 0
        self._paused_until = 0.0
        self._failures = Failures(model, pool)

    async def restore(self) -> None:
        """Take up where the ladder stood before a restart; call it before anything is loaded."""
        if self._judge.ledger is None:
            return
        state = (await self._judge.ledger.ladders()).get(self.model)
        if state is None:
            return
        shape = self._pool.shape(self.model)
        found = from_state(
            state, plan=self._plan, ladder=shape.ladder, home=shape.active, now=self._clock()
        )
        if found is None:
            await self._keep(self._standing)
            return
        self._kept = found
        self._standing = replace(found, canary=None, routes={})
        self._unfinished = found if found.canary or found.routes else None
        if found.active != found.home:
            self._pool.begin_at(self.model, found.active)
            why = next((s.reason for s in reversed(found.steps) if s.to == found.active), "")
            reason = f"{found.active} served before the restart: {why}"
            self._report.done(Decision(Act.RESTORE, reason, to=found.active), found.home)

    async def run(self) -> None:
        """Look every second, for ever."""
        await again_and_again(self._look_on)

    async def look(self) -> Decision:
        """Decide once, and do it unless this is a dry run; return the decision."""
        now, self._is_stepping = self._clock(), False
        await self._follow(now)
        if self._unfinished is not None:
            await self._take_up(self._unfinished, now)
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
        elif now >= max(self._paused_until, self._failures.until(decision.to)):
            await self._do(decision, now)
        return decision

    async def close(self) -> None:
        """Keep where the ladder stands; what was under way is kept already."""
        if self._unfinished is None and not self._is_stepping:
            await self._keep(self._standing)

    def status(self) -> dict[str, Any]:
        """Return where the ladder stands, as plain data."""
        standing, decision = self._standing, self.last
        shape = self._pool.shape(self.model)
        return {
            "rungs": list(shape.ladder),
            "active": shape.active,
            "home": standing.home,
            "canary": None if standing.canary is None else asdict(standing.canary),
            "routes": dict(standing.routes),
            "dry_run": self.rules.dry_run,
            "cool_down_left_s": self._cool_down_left_s(),
            "decision": None if decision is None else decision.name,
            "reason": None if decision is None else decision.reason,
            "steps": [asdict(step) for step in standing.steps[-10:]],
        }

    # -- inside -----------------------------------------------------------------------------

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
            self._unfinished = None
            standing = replace(standing, home=shape.active, active=shape.active, routes={})
        standing = replace(standing, canary=self._counted(standing.canary, shape))
        lost = {k: rung for k, rung in standing.routes.items() if shape.routes.get(k) != rung}
        self._standing = standing
        if lost:
            await self._lose(lost, now)
        if is_by_hand or lost or not 0 <= now - self._kept_at < _KEEP_EVERY_S:
            await self.close()

    def _counted(self, canary: Canary | None, shape: Shape) -> Canary | None:
        if canary is None or shape.canary != canary.variant:
            return None
        num_scored = self._judge.num_scored(self.model, canary.variant) - self._scored_before
        # A count that fell began anew with another digest.
        self._scored_before = min(self._scored_before, self._scored_before + num_scored)
        return replace(canary, num_scored=max(0, num_scored))

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
        shape, room = self._pool.shape(self.model), self._pool.room(self.model)
        standing = self._standing
        return Situation(
            now=now,
            ladder=shape.ladder,
            active=shape.active,
            home=standing.home,
            verdicts={
                name: found
                for name in shape.ladder
                if (found := self._judge.verdicts(self.model, name))
            },
            steps=standing.steps,
            routed=standing.routes,
            canary=standing.canary,
            free_bytes=room.free,
            needed_bytes=room.needed,
            failed=self._failures.look(now),
        )

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
        if (canary := before.canary) is not None:
            reason = f"{canary.variant} was the canary before the restart"
            share = self.rules.canary_share
            again = Decision(Act.START_CANARY, reason, to=canary.variant, share=share)
            if await self._do_again(again, now):
                counted = self._judge.num_scored(self.model, canary.variant)
                self._scored_before = counted - canary.num_scored
                self._standing = replace(self._standing, canary=canary)
        self._unfinished = None
        await self._keep(self._standing)

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

    async def _do(self, decision: Decision, now: float) -> None:
        before = self._standing
        planned, left = before.after(decision, now), before.left_by(decision)
        self._is_stepping = True
        await self._judge.keep()
        await self._keep(planned)
        result = await self._try(decision)
        self._is_stepping = False
        if result is not None:
            await self._keep(before)
            self._tell(decision, result)
            return
        self._standing = planned
        if planned.canary is not None and decision.act is Act.START_CANARY:
            self._judge.try_again(self.model, planned.canary.variant)
            self._scored_before = self._judge.num_scored(self.model, planned.canary.variant)
            await self._judge.keep()
        self._report.done(decision, left)

    async def _try(self, decision: Decision) -> str | None:
        """Carry out a decision; return None, or what became of it instead."""
        try:
            await self._carry_out(decision, f"{self.model}@{decision.to}")
        except Superseded:
            return "superseded"
        except NarrowgateError as error:
            # The rung that serves goes on; the same again at once would fail the same way.
            self._failures.add(decision.to or "", until=self._clock() + self.rules.cool_down_s)
            logger.error("%s: %s to %s failed: %s", self.model, decision.act, decision.to, error)
            return "failed"
        return None

    async def _carry_out(self, decision: Decision, name: str) -> None:
        left = self._standing.active  # an operator may choose another one while this waits
        match decision.act:
            case Act.STEP_UP | Act.PROMOTE:
                await self._pool.activate(name, expected=left, waits=False)
                await self._pool.end_canary(self.model)
            case Act.START_CANARY:
                await self._pool.start_canary(name, decision.share, expected=left)
            case Act.ROLL_BACK:
                await self._pool.end_canary(self.model)
            case Act.ROUTE_SLICES:
                await self._pool.route(name, decision.slices, decision.share)
            case Act.GIVE_BACK_SLICES:
                await self._pool.end_routes(self.model, decision.slices)

    async def _keep(self, standing: Standing) -> None:
        self._kept_at = self._clock()
        ledger = self._judge.ledger
        if ledger is not None and standing != self._kept:
            self._kept = standing
            await ledger.keep_ladder(self.model, to_state(standing, self._plan))

    def _tell(self, decision: Decision, result: str) -> None:
        self._report.tell(decision, self._standing.left_by(decision), result)


def _gist(decision: Decision) -> tuple[object, ...]:
    """Return a decision without its numbers, which change at each look."""
    refused = None if decision.refused is None else _gist(decision.refused)
    return decision.act, decision.to, decision.slices, refused
