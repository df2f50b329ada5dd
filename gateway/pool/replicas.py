"""The equal engines of one variant: started together, and one of them chosen for each request."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence

from gateway.backends.base import Engine
from gateway.demand import Demand
from gateway.launch import Launch
from gateway.pool.replica import Replica, TryEngine
from gateway.pool.routing import ReplicaLoad, choose
from gateway.pool.state import Patience, State
from gateway.prepared import Prepared
from gateway.registry import Metrics
from gateway.specs import VariantSpec

logger = logging.getLogger(__name__)


class Replicas:
    """The replicas of a variant from one load to the next stop; none in between."""

    def __init__(
        self,
        spec: VariantSpec,
        *,
        launch: Launch,
        metrics: Metrics,
        patience: Patience,
        try_engine: TryEngine,
        on_change: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._launch = launch
        self._metrics = metrics
        self._patience = patience
        self._try_engine = try_engine
        self._on_change = on_change
        self._replicas: list[Replica] = []
        self._late_starts: set[asyncio.Future[None]] = set()
        """Of engines elsewhere that nobody waits for; kept until they are over."""

    def __iter__(self) -> Iterator[Replica]:
        """Yield them by index."""
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def state(self) -> State:
        """Return how well they serve together: as the best of them, once they were started."""
        states = {replica.state for replica in self._replicas}
        for state in (State.READY, State.RESTARTING, State.LOADING):
            if state in states:
                return state
        return State.FAILED

    @property
    def engines(self) -> list[Engine]:
        """Return those that run."""
        return [replica.engine for replica in self._replicas if replica.engine is not None]

    def choose(self, demand: Demand, excluding: Collection[Replica]) -> Replica | None:
        """Return who takes a request; None: nobody does now."""
        ready = [
            each for each in self._replicas if each.state is State.READY and each not in excluding
        ]
        # With none to trust any is better than none: what fails may be the requests.
        usable = {each.index: each for each in ready if each.is_trusted} or {
            each.index: each for each in ready
        }
        if not usable:
            return None
        loads = [ReplicaLoad(key, each.outstanding_tokens) for key, each in usable.items()]
        return usable[choose(loads, demand)]

    async def start(self, prepared: Prepared) -> None:
        """Start all engines and wait for them; of engines elsewhere, for the first.

        Raises:
            StartupError: an engine, or each of those elsewhere, cannot be started.
            ApiError: it does not describe itself.
        """
        self._replicas = [
            Replica(
                self._spec,
                index,
                launch=self._launch,
                prepared=prepared,
                metrics=self._metrics,
                patience=self._patience,
                try_engine=self._try_engine,
                on_change=self._on_change,
            )
            for index in range(self._spec.num_replicas)
        ]
        starts = [asyncio.ensure_future(each.start()) for each in self._replicas]
        try:
            if self._spec.settings.urls:
                await self._await_one(starts)
            else:
                await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            raise

    async def stop(self, grace_s: float) -> None:
        """End all engines, or their starts; safe to repeat."""
        await asyncio.gather(*(replica.stop(grace_s) for replica in self._replicas))
        self._replicas = []

    async def _await_one(self, starts: Sequence[asyncio.Future[None]]) -> None:
        """Wait until one of the engines elsewhere is ready; the others may come later."""
        waiting: set[asyncio.Future[None]] = set(starts)
        while waiting and not any(each.engine for each in self._replicas):
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not any(each.engine for each in self._replicas):
            starts[0].result()
        for start in starts:
            self._late_starts.add(start)
            start.add_done_callback(self._end_of_start)

    def _end_of_start(self, start: asyncio.Future[None]) -> None:
        self._late_starts.discard(start)
        if not start.cancelled() and (error := start.exception()) is not None:
            logger.error("an engine of %s is not there: %s", self._spec.served_name, error)
