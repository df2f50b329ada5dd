"""What operators ask of a model's ladder: a canary on their terms, its end, and how it is."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from gateway.errors import ModelLoading, NoCanary, StepUnderWay
from gateway.pool.pool import Pool
from gateway.pool.state import State
from gateway.shadow.ladder import check_order
from gateway.shadow.ladder_canary import CanaryEngines
from gateway.shadow.ladder_order import Ending, Terms
from gateway.shadow.ladder_restart import LadderRestart
from gateway.shadow.ladder_rules import Act, Canary, Cause, Decision
from gateway.shadow.ladder_sight import LadderSight
from gateway.shadow.ladder_steps import BROKEN_OFF, LadderSteps

_TURN_S = 1.0
"""How long an operator waits for the ladder's turn; a step may build and load for minutes."""


class LadderOperator:
    """Takes orders about one model's canary; times are in seconds since the epoch."""

    def __init__(
        self,
        model: str,
        steps: LadderSteps,
        restart: LadderRestart,
        *,
        pool: Pool,
        sight: LadderSight,
        engines: CanaryEngines,
        turn: asyncio.Lock,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._steps = steps
        self._restart = restart
        self._pool = pool
        self._sight = sight
        self._engines = engines
        self._turn = turn
        self._clock = clock

    async def start_canary(self, rung: str, terms: Terms) -> None:
        """Put a rung on trial; it is loaded first, which nobody waits for.

        Raises:
            ApiError: it cannot be tried now, or has no room.
        """
        async with self._soon():
            now, steps = self._clock(), self._steps
            await steps.follow(now)
            if steps.unfinished is not None:
                raise ModelLoading(f"{self._model} is loading: try again in a few seconds")
            check_order(self._model, rung, steps.situation(now))
            ordered = Canary(rung, now, 0, replace(terms, beside=steps.standing.active))
            await steps.stand(replace(steps.standing, ordered=ordered, ended=None))
            steps.tell(_start_of(ordered), "ordered")
            self._engines.is_loaded(rung)

    async def take_up(self, now: float) -> None:
        """Begin what was ordered, once its engines are there; the caller has the turn."""
        steps = self._steps
        ordered = steps.standing.ordered
        if ordered is None or ordered.terms is None:
            return
        rung, active = ordered.variant, steps.standing.active
        if not self._engines.are_loading and self._pool.find(self._model).state is not State.READY:
            return  # after a restart what serves is loaded first
        if active != ordered.terms.beside:
            await self._engines.give_up(rung)
            reason = f"{active} was activated while {rung} was loading"
            await steps.settle(steps.standing, Ending.WITHDRAWN, reason, now)
        elif self._engines.is_loaded(rung):
            start, problem = _start_of(ordered), self._engines.take_result()
            if problem is not None:
                steps.fail(start, problem, now)
            elif (result := await steps.do(start, now)) not in {None, BROKEN_OFF}:
                problem = f"{rung} was loaded, and its start was {result}"
            if problem is not None:
                await steps.settle(steps.standing, Ending.FAILED, problem, now)

    async def end_canary(self) -> None:
        """End the canary, whoever asked for it; its load ends too, which nobody waits for.

        Raises:
            NoCanary: there is none.
            StepUnderWay: the ladder is in the middle of something else that takes long.
        """
        with self._steps.breaking_off():
            await self._end_canary()

    async def _end_canary(self) -> None:
        async with self._soon():
            now, why, steps = self._clock(), "an operator ended it", self._steps
            await steps.follow(now)
            before, standing = steps.unfinished, steps.standing
            if before is not None and before.canary is not None:
                await self._restart.withdraw(before, before.canary, why, now)
            elif standing.ordered is not None:
                await self._engines.give_up(standing.ordered.variant)
                await steps.settle(standing, Ending.WITHDRAWN, why, now)
            elif rung := standing.canary.variant if standing.canary else steps.broken_off:
                steps.broken_off = None
                await steps.do(
                    Decision(Act.ROLL_BACK, f"{rung}: {why}", rung, cause=Cause.WITHDRAWN), now
                )
            else:
                raise NoCanary(f"{self._model} has no canary: begin one with POST on the same path")

    def canary(self) -> dict[str, Any]:
        """Return the canary and the end of the last one that was ordered, as plain data."""
        standing, before, state = self._steps.standing, self._steps.unfinished, "running"
        canary = standing.canary
        if before is not None and before.canary is not None:
            canary, state = before.canary, "waiting"
        elif standing.ordered is not None:
            canary, state = standing.ordered, "loading"
        elif self._steps.starting is not None:
            canary, state = self._steps.starting, "loading"
        shown = None if canary is None else self._sight.canary(canary, state, self._steps.last)
        ended = None if standing.ended is None else asdict(standing.ended)
        return {"model": self._model, "canary": shown, "last": ended}

    @asynccontextmanager
    async def _soon(self) -> AsyncIterator[None]:
        """Take the turn for an operator, who does not wait for a step."""
        try:
            async with asyncio.timeout(_TURN_S):
                await self._turn.acquire()
        except TimeoutError:
            goes_to = self._steps.goes_to
            step = f"a step to {goes_to}" if goes_to else "a look at the ladder"
            raise StepUnderWay(
                f"{step} of {self._model} is under way: try again when it has ended"
            ) from None
        try:
            yield
        finally:
            self._turn.release()


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
