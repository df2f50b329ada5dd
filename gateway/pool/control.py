"""What operators and ladders change: what is loaded, and who serves a model's name."""

import asyncio
from collections.abc import Collection

from gateway.pool.roster import Roster
from gateway.pool.state import Patience, Snapshot, State


class Control:
    """Loads and unloads variants, and leads requests from one to another without failing any.

    A name is ``alias``, for the variant that is active, or ``alias@variant``.
    """

    def __init__(self, roster: Roster, patience: Patience) -> None:
        self._roster = roster
        self._patience = patience

    def begin_at(self, alias: str, variant: str) -> None:
        """Make a variant the active one before anything is loaded.

        Raises:
            ModelNotFound: unknown name.
        """
        model, chosen = self._roster.find(f"{alias}@{variant}")
        if chosen is not None:
            model.begin_at(chosen)

    async def load(self, name: str) -> Snapshot:
        """Load what answers to that name.

        Raises:
            NarrowgateError: unknown name, or the load failed.
        """
        variant = self._roster.variant(name)
        if variant.state is State.FAILED:
            await variant.stop(0)  # an operator who asks again does not wait for the pause
        variant.is_borrowed = False
        await variant.ensure_ready()
        return variant.snapshot()

    async def load_beside(self, name: str) -> None:
        """Load a variant while the model's active one keeps its memory, in use or not.

        Raises:
            NarrowgateError: unknown name, or the load failed.
        """
        model, _ = self._roster.find(name)
        with model.keeping_active():
            await self.load(name)

    async def unload(self, name: str) -> Snapshot:
        """Stop what answers to that name, after its running requests have ended.

        Raises:
            ModelNotFound: unknown name.
        """
        variant = self._roster.variant(name)
        await variant.stop(self._patience.stop_grace_s, drain_s=self._patience.drain_s)
        return variant.snapshot()

    async def let_go(self, name: str) -> None:
        """End the load of ``alias@variant``, or stop it after its last answer, without waiting.

        One that serves, or that somebody else holds, stays.

        Raises:
            ModelNotFound: unknown name.
        """
        model, variant = self._roster.find(name)
        if variant is not None:
            await model.let_go(variant)

    async def activate(
        self, name: str, *, expected: str | None = None, waits: bool = True
    ) -> Snapshot:
        """Make a variant the one that serves its model's plain name, without failing a request.

        The new one is loaded and tried while the old one serves; then requests go to the new one,
        and the old one is stopped when its last request has ended, which may be waited for.

        Raises:
            Superseded: another variant than ``expected`` is active when its turn comes.
            NarrowgateError: unknown name, or the variant cannot be loaded; the old one stays.
        """
        model, variant = self._roster.find(name)
        chosen = variant or model.active
        for stop in await model.activate(chosen, expected=expected):
            if waits:
                await asyncio.shield(stop)
        return chosen.snapshot()

    async def start_canary(self, name: str, share: float, *, expected: str | None = None) -> None:
        """Load a variant, and give it a share of the requests for its model's plain name.

        Raises:
            Superseded: another variant than ``expected`` is active when its turn comes.
            NarrowgateError: unknown name, or the variant cannot be loaded.
        """
        model, variant = self._roster.find(name)
        if variant is not None:
            await model.start_canary(variant, share, expected=expected)

    async def end_canary(self, alias: str) -> None:
        """Take its share from a model's canary, and stop it when its last request has ended."""
        model, _ = self._roster.find(alias)
        await model.end_canary()

    async def route(self, name: str, slices: Collection[str], share: float) -> None:
        """Load a variant, and send it a share of the requests in some slices.

        They go to it instead of where they went before; one that serves them no longer is stopped
        when its last request has ended. A variant that is not safer than the active one by then
        gets none.

        Raises:
            NarrowgateError: unknown name, or the variant cannot be loaded.
        """
        model, variant = self._roster.find(name)
        if variant is not None:
            await model.route(variant, slices, share)

    async def end_routes(self, alias: str, slices: Collection[str]) -> None:
        """Let slices go where all others go; whoever answered them is stopped after that."""
        model, _ = self._roster.find(alias)
        await model.end_routes(slices)
