"""All models of this gateway by name: leases of their engines, and the way to the end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from compression.events import OnProgress
from gateway.errors import Draining, ModelNotFound
from gateway.keeper import Keeper, Launch, Patience, Snapshot
from gateway.metrics import Metrics
from gateway.settings import ModelSpec
from gateway.upstream import EngineClient
from gateway.wire import MAX_ECHO


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use a model's engine while the block is open."""

    spec: ModelSpec
    client: EngineClient


class Pool:
    """The keepers of all models; the only place where running requests are counted."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        launch: Launch,
        *,
        metrics: Metrics,
        on_progress: OnProgress,
        patience: Patience,
    ) -> None:
        self._keepers = {
            spec.alias: Keeper(
                spec, launch, metrics=metrics, on_progress=on_progress, patience=patience
            )
            for spec in specs
        }
        self._patience = patience
        self._is_draining = False
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Lease]:
        """Count one running request against a model's engine while the block is open.

        Raises:
            ApiError: unknown name, or the model cannot serve now.
        """
        if self._is_draining:
            raise Draining("the gateway is stopping and takes no new requests")
        keeper = self._find(name)
        lease = Lease(keeper.spec, keeper.client())
        self._num_running += 1
        self._idle.clear()
        try:
            yield lease
        finally:
            self._num_running -= 1
            if not self._num_running:
                self._idle.set()

    def find(self, name: str) -> Snapshot:
        """Return the model of that name, ``alias`` or ``alias@variant``.

        Raises:
            ModelNotFound: names the models that exist.
        """
        return self._find(name).snapshot()

    def snapshots(self) -> list[Snapshot]:
        """Return all models as they are now."""
        return [keeper.snapshot() for keeper in self._keepers.values()]

    @property
    def is_draining(self) -> bool:
        """Return whether new requests are refused for good."""
        return self._is_draining

    async def ensure_ready(self) -> None:
        """Load every model, one after the other; concurrent calls share the loads.

        Raises:
            NarrowgateError: a first load failed.
        """
        for keeper in self._keepers.values():
            await keeper.ensure_ready()

    def drain(self) -> None:
        """Refuse new requests from now on; running ones go on."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Wait until no request is running."""
        await self._idle.wait()

    async def close(self, grace_s: float | None = None) -> None:
        """Stop all loads and engines; safe to repeat."""
        self.drain()
        seconds = self._patience.stop_grace_s if grace_s is None else grace_s
        await asyncio.gather(*(keeper.close(seconds) for keeper in self._keepers.values()))

    def _find(self, name: str) -> Keeper:
        keeper = self._keepers.get(name.partition("@")[0])
        if keeper is not None and name in {keeper.spec.alias, keeper.spec.served_name}:
            return keeper
        known = ", ".join(keeper.spec.served_name for keeper in self._keepers.values())
        raise ModelNotFound(f"no model {name[:MAX_ECHO]!r} is served here: use one of {known}")
