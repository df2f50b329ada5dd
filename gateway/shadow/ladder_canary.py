"""The engines of a canary: how they are loaded, let go before it began, and how they are."""

import asyncio

from gateway.errors import NarrowgateError
from gateway.pool.breaker import BreakerState
from gateway.pool.pool import Pool
from gateway.pool.state import State


class CanaryEngines:
    """Loads one rung of a model beside everything else, and tells what befalls it after that.

    The load holds up neither requests nor a step of the ladder, which may come first.
    """

    def __init__(self, model: str, pool: Pool) -> None:
        self._model = model
        self._pool = pool
        self._load: asyncio.Task[str | None] | None = None
        self._brought: str | None = None
        """A rung that is loaded, or is about to be, for a trial that has not begun."""
        self._num_restarts = 0

    @property
    def are_loading(self) -> bool:
        """Return whether a load was begun, ended or not."""
        return self._load is not None

    def is_loaded(self, rung: str) -> bool:
        """Return whether its load has ended, well or not; it is begun if that was not done."""
        if self._load is None:
            self.bring(rung)
            self._load = asyncio.create_task(self._loaded(f"{self._model}@{rung}"))
        return self._load.done()

    def take_result(self) -> str | None:
        """Return why the load that has ended failed, or None; the next one begins anew."""
        load, self._load = self._load, None
        return load.result() if load is not None and not load.cancelled() else None

    def bring(self, rung: str) -> None:
        """Take note that a rung is about to be loaded for a trial, unless it is there already."""
        if rung != self._brought:
            state = self._pool.find(f"{self._model}@{rung}").state
            self._brought = rung if state in {State.STOPPED, State.FAILED} else None

    async def give_up(self, rung: str) -> None:
        """Begin no trial: what was loaded for it, or is being loaded, ends, and is not waited for.

        A rung that was there before, or that somebody else was loading, is left alone.
        """
        load, self._load = self._load, None
        if load is not None:
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
        brought, self._brought = self._brought, None
        if brought == rung:
            await self._pool.control.let_go(f"{self._model}@{rung}")

    async def close(self) -> None:
        """Wait for nothing any longer."""
        if self._load is not None:
            self._load.cancel()
            await asyncio.gather(self._load, return_exceptions=True)

    def watch(self, rung: str) -> None:
        """Hold against it only what befalls it from now on: its trial has begun."""
        self._brought = None
        self._num_restarts = self._restarts(rung)

    def trouble(self, rung: str) -> str | None:
        """Return what has befallen it, in words; None: it is well."""
        shot = self._pool.find(f"{self._model}@{rung}")
        unready = [each for each in shot.replicas if each.state is not State.READY]
        if shot.state is not State.READY or unready:
            state = unready[0].state if unready else shot.state
            return f"an engine of it is {state}"
        if self._restarts(rung) > self._num_restarts:
            return "an engine of it was lost"
        if any(each.breaker is not BreakerState.CLOSED for each in shot.replicas):
            return "an engine of it fails its requests"
        return None

    def _restarts(self, rung: str) -> int:
        shot = self._pool.find(f"{self._model}@{rung}")
        return sum(each.num_restarts for each in shot.replicas)

    async def _loaded(self, name: str) -> str | None:
        try:
            await self._pool.control.load_beside(name)
        except NarrowgateError as error:
            return str(error)
        return None
