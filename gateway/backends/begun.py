"""An engine that loads its libraries while it is still being found out what it will serve."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from gateway.backends import embedded
from gateway.backends.process import EngineProcess
from gateway.errors import ChildFailed
from gateway.specs import VariantSpec
from gateway.upstream import EngineClient


class Begun:
    """At most one engine of the embedded kind, begun for one variant and taken once, or dropped."""

    def __init__(self) -> None:
        self._held: tuple[VariantSpec, EngineProcess] | None = None
        self._ends: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def begin(self, spec: VariantSpec, command: Sequence[str], client: EngineClient) -> None:
        """Start the engine; if it cannot be, that shows when it is started for good."""
        with suppress(ChildFailed):
            engine = await EngineProcess.begin(
                command, client, backend=embedded.BACKEND, niceness=spec.niceness
            )
            self._held = spec, engine
            if self._is_closed:
                self.drop()

    def take(self, spec: VariantSpec) -> EngineProcess | None:
        """Return the engine if it was begun for this variant and still runs; it is the caller's."""
        if self._held is None or self._held[0] != spec or self._held[1].has_ended:
            return None
        engine, self._held = self._held[1], None
        return engine

    def keep_for(self, spec: VariantSpec) -> None:
        """Drop the engine unless it was begun for this variant."""
        if self._held is not None and self._held[0] != spec:
            self.drop()

    def drop(self) -> None:
        """End an engine that was not taken; safe to repeat."""
        if self._held is not None:
            end = asyncio.create_task(self._held[1].stop(0))
            self._held = None
            self._ends.add(end)
            end.add_done_callback(self._ends.discard)

    async def close(self) -> None:
        """Drop it, and one that is just beginning, and wait for its end."""
        self._is_closed = True
        self.drop()
        await asyncio.gather(*self._ends, return_exceptions=True)
