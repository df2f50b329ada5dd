"""How a decision about a model's ladder is carried out through the pool."""

import logging
from collections.abc import Callable

from gateway.errors import NarrowgateError, Superseded
from gateway.pool.pool import Pool
from gateway.shadow.ladder_failures import Failures
from gateway.shadow.ladder_rules import Act, Decision

logger = logging.getLogger(__name__)


class LadderHands:
    """Does to one model what was decided, and remembers which rungs could not be loaded."""

    def __init__(
        self, model: str, pool: Pool, *, cool_down_s: float, clock: Callable[[], float]
    ) -> None:
        self.failures = Failures(model, pool)
        self._model = model
        self._control = pool.control
        self._cool_down_s = cool_down_s
        self._clock = clock

    async def try_to(self, decision: Decision, *, leaving: str) -> str | None:
        """Carry out a decision; return None, or what became of it instead."""
        try:
            await self._carry_out(decision, leaving)
        except Superseded:
            return "superseded"
        except NarrowgateError as error:
            # The rung that serves goes on; the same again at once would fail the same way.
            self.failures.add(decision.to or "", until=self._clock() + self._cool_down_s)
            logger.error("%s: %s to %s failed: %s", self._model, decision.act, decision.to, error)
            return "failed"
        return None

    async def _carry_out(self, decision: Decision, leaving: str) -> None:
        name = f"{self._model}@{decision.to}"
        match decision.act:
            case Act.STEP_UP | Act.PROMOTE:
                # An operator may choose another one while this waits.
                await self._control.activate(name, expected=leaving, waits=False)
                await self._control.end_canary(self._model)
            case Act.START_CANARY:
                await self._control.start_canary(name, decision.share, expected=leaving)
            case Act.ROLL_BACK:
                await self._control.end_canary(self._model)
            case Act.ROUTE_SLICES:
                await self._control.route(name, decision.slices, decision.share)
            case Act.GIVE_BACK_SLICES:
                await self._control.end_routes(self._model, decision.slices)
