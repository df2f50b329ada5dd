"""What a ladder's keeper leaves in the ledger, and finds there after a restart."""

import time
from collections.abc import Callable

from gateway.pool.state import Shape
from gateway.shadow.ladder_order import Outcome
from gateway.shadow.ladder_standing import Standing
from gateway.shadow.ladder_state import from_state, lost_order, to_state
from gateway.shadow.ledger import Ledger

_KEEP_EVERY_S = 30.0
"""How old the count of a canary's scored requests may be in the ledger."""


class LadderMemory:
    """Keeps one model's standing; ``plan`` stands for the ladder that it is about."""

    def __init__(
        self,
        model: str,
        plan: str,
        ledger: Ledger | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lost: Outcome | None = None
        """An operator's canary that was under way on what is another ladder now."""
        self._model = model
        self._plan = plan
        self._ledger = ledger
        self._clock = clock
        self._kept: Standing | None = None
        self._kept_at = clock()

    async def read(self, shape: Shape) -> Standing | None:
        """Return what was kept; None: nothing, or it was about something else and is dropped."""
        kept = {} if self._ledger is None else await self._ledger.ladders()
        if self._ledger is None or self._model not in kept:
            return None
        state, now = kept.pop(self._model), self._clock()
        self._kept = from_state(
            state, plan=self._plan, ladder=shape.ladder, home=shape.active, now=now
        )
        if self._kept is None:
            self.lost = lost_order(state, now)
            await self._ledger.forget_ladders(but=sorted(kept))
        return self._kept

    def is_old(self, now: float) -> bool:
        """Return whether it was not kept for a while."""
        return not 0 <= now - self._kept_at < _KEEP_EVERY_S

    async def keep(self, standing: Standing) -> None:
        """Keep it, unless it is kept already, or nothing was ever done."""
        self._kept_at = self._clock()
        is_bare = not (standing.steps or standing.canary_order or standing.ended)
        if self._ledger is None or standing == self._kept or (self._kept is None and is_bare):
            return
        self._kept = standing
        await self._ledger.keep_ladder(self._model, to_state(standing, self._plan))
