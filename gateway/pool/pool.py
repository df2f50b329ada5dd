"""All models of this gateway by name: who serves a request, who is in memory, and who is active."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict
from functools import partial

from compression.events import OnProgress, Progress
from gateway.demand import Demand
from gateway.errors import Draining
from gateway.launch import Launch
from gateway.pool.control import Control
from gateway.pool.events import EventLog
from gateway.pool.gauges import record_state
from gateway.pool.lease import Lease, ReadyEngine
from gateway.pool.memory import Memory
from gateway.pool.model import Model
from gateway.pool.preload import preload
from gateway.pool.replica import Replica
from gateway.pool.roster import Roster
from gateway.pool.smoke_check import SmokeCheck
from gateway.pool.state import Headroom, Patience, Shape, Snapshot, State
from gateway.pool.variant import Variant
from gateway.registry import Metrics
from gateway.specs import ModelSpec, VariantSpec

_ANY = Demand()


class Pool:
    """Every variant of every model; the only owner of their states and of what uses them."""

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        launch: Launch,
        *,
        metrics: Metrics,
        on_progress: OnProgress,
        patience: Patience,
        memory_budget: int | None = None,
        smoke_check_max_nll_increase: float = 2.0,
    ) -> None:
        self.events = EventLog()
        self._launch = launch
        self._metrics = metrics
        self._on_progress = on_progress
        self._patience = patience
        self._smoke_check = SmokeCheck(smoke_check_max_nll_increase)
        self._is_draining = False
        self._num_running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._states: dict[str, State] = {}
        self._roster = Roster()
        self._memory = Memory(
            self._roster.variants, memory_budget, metrics=metrics, patience=patience
        )
        for spec in specs:
            self._roster.add(self._model(spec))
        self.control = Control(self._roster, patience)
        """What operators and ladders may change."""

    # -- requests ---------------------------------------------------------------------------

    def targets(
        self, name: str, request_id: str | None = None, slices: Collection[str] = ()
    ) -> list[Variant]:
        """Return who may answer a request, in the order in which they are to be tried.

        Raises:
            ModelNotFound: names the models that exist.
        """
        return self._roster.targets(name, request_id, slices)

    def has_routes(self, name: str) -> bool:
        """Return whether a request for that name may go elsewhere because of its slices.

        Raises:
            ModelNotFound: names the models that exist.
        """
        model, pinned = self._roster.find(name)
        return pinned is None and bool(model.routes)

    @asynccontextmanager
    async def use(
        self,
        variant: Variant,
        demand: Demand = _ANY,
        *,
        excluding: Collection[Replica] = (),
        may_wait: bool = True,
    ) -> AsyncIterator[Lease]:
        """Count one running request against an engine of a variant while the block is open.

        A variant that is not in memory is loaded; a request that may wait does so for a while.

        Raises:
            ApiError: the variant cannot serve now.
        """
        if self._is_draining:
            raise Draining("the gateway is stopping and takes no new requests")
        if variant.state in {State.STOPPED, State.LOADING, State.STOPPING, State.FAILED}:
            await variant.wait_ready(self._patience.load_wait_s if may_wait else 0)
        with variant.use(demand, excluding) as replica:
            if replica.engine is None:
                raise Draining(f"{replica.name} is being stopped: try again")
            self._num_running += 1
            self._idle.clear()
            try:
                yield Lease(variant.spec, replica.engine.client, replica)
            finally:
                self._num_running -= 1
                if not self._num_running:
                    self._idle.set()

    @asynccontextmanager
    async def lease(
        self, name: str, demand: Demand = _ANY, *, borrows: bool = False
    ) -> AsyncIterator[Lease]:
        """Count one running request against an engine of a name's first choice.

        One that ``borrows`` lets a variant go, after some idle minutes, that it had to load.

        Raises:
            ApiError: unknown name, or it cannot serve now.
        """
        variant = self.targets(name)[0]
        if borrows and variant.state in {State.STOPPED, State.FAILED}:
            variant.is_borrowed = True
        async with self.use(variant, demand) as lease:
            yield lease

    # -- what there is ----------------------------------------------------------------------

    def find(self, name: str) -> Snapshot:
        """Return what answers to that name, ``alias`` or ``alias@variant``.

        Raises:
            ModelNotFound: names the models that exist.
        """
        return self._roster.variant(name).snapshot()

    def snapshots(self) -> list[Snapshot]:
        """Return all variants as they are now, model by model, rung by rung."""
        return [variant.snapshot() for variant in self._roster.variants()]

    @property
    def num_running(self) -> int:
        """Return how many requests use an engine now."""
        return self._num_running

    def ready_engines(self) -> list[ReadyEngine]:
        """Return the engines that take requests; looking at them is no use of them."""
        return [
            ReadyEngine(
                variant.spec, replica.name, replica.engine.client, replica.index, replica.info
            )
            for variant in self._roster.variants()
            for replica in variant.replicas
            if replica.engine is not None and replica.state is State.READY
        ]

    @property
    def is_draining(self) -> bool:
        """Return whether new requests are refused for good."""
        return self._is_draining

    @property
    def is_ready(self) -> bool:
        """Return whether requests are taken: something is loaded, or nothing needs to be."""
        preloaded = [model.active for model in self._roster if model.spec.settings.preload]
        states = {variant.state for variant in self._roster.variants()}
        return not self._is_draining and (State.READY in states or not preloaded)

    def headroom(self, alias: str) -> Headroom:
        """Return how much memory there is for another variant of a model beside the active one."""
        model, _ = self._roster.find(alias)
        needed = {
            name: each.needed_bytes()
            for name, each in model.variants.items()
            if not each.is_resident
        }
        return Headroom(self._memory.free_bytes(model.active), needed)

    def unused_bytes(self) -> int | None:
        """Return what of the memory budget is free; None: there is none."""
        return self._memory.unused_bytes()

    def hold(self, num_bytes: int, name: str) -> AbstractContextManager[None]:
        """Set memory aside for work beside the engines while the block is open.

        Raises:
            NoMemory: so much is not free; nobody is stopped for it.
        """
        return self._memory.hold(num_bytes, name)

    def shape(self, alias: str) -> Shape:
        """Return a model's ladder and who serves it now."""
        model, _ = self._roster.find(alias)
        return model.shape()

    # -- the whole life ---------------------------------------------------------------------

    async def ensure_ready(self) -> None:
        """Load the active variant of every model that is to be preloaded, one after the other.

        One that cannot be loaded gives way to the one that the settings name.

        Raises:
            NarrowgateError: a first load failed.
        """
        await preload(self._roster)

    async def tend(self) -> None:
        """Keep memory tidy, for ever."""
        await self._memory.tend()

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
        await asyncio.gather(*(variant.stop(seconds) for variant in self._roster.variants()))

    # -- inside -----------------------------------------------------------------------------

    def _model(self, spec: ModelSpec) -> Model:
        variants = {each.variant: self._make_variant(each, spec) for each in spec.variants}
        model = Model(
            spec, variants, metrics=self._metrics, events=self.events, patience=self._patience
        )
        for variant in variants.values():
            self._changed(variant)
        return model

    def _make_variant(self, spec: VariantSpec, model: ModelSpec) -> Variant:
        return Variant(
            spec,
            model.settings,
            launch=self._launch,
            metrics=self._metrics,
            patience=self._patience,
            on_progress=partial(self._progress, spec.served_name),
            on_change=self._changed,
            on_idle=self._memory.tell,
            make_room=self._memory.make_room,
            try_engine=partial(self._smoke_check.run, model.alias),
        )

    def _changed(self, variant: Variant) -> None:
        self._memory.tell()
        shot = variant.snapshot()
        name = shot.spec.served_name
        record_state(self._metrics, shot)
        if self._states.get(name) is not shot.state:
            self._states[name] = shot.state
            self.events.publish("state", {"model": name, "state": shot.state.value})

    def _progress(self, name: str, progress: Progress) -> None:
        self._on_progress(progress)
        self.events.publish("progress", {"model": name, **asdict(progress)})
