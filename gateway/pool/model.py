"""One model: its variants, who serves its name, and how that changes without a failed request."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from gateway.errors import Superseded
from gateway.pool.events import EventLog
from gateway.pool.routes import Routes
from gateway.pool.share import Share
from gateway.pool.state import Patience, Shape
from gateway.pool.variant import Variant
from gateway.registry import Metrics
from gateway.specs import ModelSpec

_Stops = Sequence[asyncio.Task[None]]
"""What goes on after a change: a variant's last answers, and its end."""


class Model:
    """A model: its variants from the smallest to the safest, and the one that serves its name.

    Beside the active one a canary, or variants that slices are routed to, take some requests for
    its name. Whoever does stays in memory, and is stopped after its last answer when nothing leads
    to it any longer.
    """

    def __init__(
        self,
        spec: ModelSpec,
        variants: Mapping[str, Variant],
        *,
        metrics: Metrics,
        events: EventLog,
        patience: Patience,
    ) -> None:
        self.spec = spec
        self.variants = variants
        self.ladder = tuple(variants.values())
        self.active = self.configured
        self.canary: Share | None = None
        self.routes = Routes(self.ladder)
        self._metrics = metrics
        self._events = events
        self._patience = patience
        self._swapping = asyncio.Lock()
        self._holds: Counter[Variant] = Counter()
        """How many hold a variant in memory for now."""
        self._num_keeping = 0
        """How many keep whoever is active."""
        self.begin_at(self.active)
        self._try_out(None)

    @property
    def configured(self) -> Variant:
        """Return the variant that the settings name."""
        return self.variants[self.spec.active]

    def first_choices(self, request_id: str | None, slices: Collection[str]) -> list[Variant]:
        """Return who may answer a request for the name: the active variant last."""
        if not request_id:
            return [self.active]
        elsewhere = self.routes.takes(request_id, slices)
        if elsewhere is None and self.canary is not None and self.canary.takes(request_id):
            elsewhere = self.canary.variant
        return [self.active] if elsewhere is None else [elsewhere, self.active]

    def next_rung(self) -> Collection[Variant]:
        """Return the variant above the active one, if there is one."""
        return self.ladder[self.ladder.index(self.active) + 1 :][:1]

    def shape(self) -> Shape:
        """Return the ladder, and who serves."""
        canary = self.canary.variant.spec.variant if self.canary else None
        share = self.canary.share if self.canary else 0.0
        active = self.active.spec.variant
        return Shape(tuple(self.variants), active, canary, self.routes.shape(), share)

    def begin_at(self, variant: Variant) -> None:
        """Make a variant the active one as it is, loaded or not; all routes end."""
        self.active.is_active = False
        self.active = variant
        if self.canary is not None and self.canary.variant is variant:
            self._try_out(None)
        self.routes.clear()
        self._tell_routes()
        variant.is_active = True
        self._mark_held()
        gauge = self._metrics.gauges["active_variant"]
        for each in self.ladder:
            gauge.labels(each.spec.alias, each.spec.variant).set(each is variant)

    async def activate(self, variant: Variant, *, expected: str | None = None) -> _Stops:
        """Load a variant while the old one serves, then swap them; return who is being stopped.

        Raises:
            Superseded: another one than ``expected`` is active when its turn comes.
            NarrowgateError: it cannot be loaded; the old one stays.
        """
        async with self._swapping:
            self._check_active(expected)
            old, alias = self.active, self.spec.alias
            if variant is old:
                await variant.ensure_ready()
                return []
            fields = {"model": alias, "from": old.spec.variant, "to": variant.spec.variant}
            self._events.publish("swap_started", fields)
            result, beside = "failed", self.routes.variants
            try:
                with self._holding(variant, old):
                    await variant.ensure_ready()
                    self.begin_at(variant)
                result = "ok"
            finally:
                self._metrics.counters["variant_swaps_total"].labels(alias, result).inc()
                self._events.publish("swap_ended", {**fields, "result": result})
            return await self._release({old, *beside})

    @contextmanager
    def keeping_active(self) -> Iterator[None]:
        """Keep who is active in memory while the block is open, in use or not, and after a swap."""
        self._num_keeping += 1
        self._mark_held()
        try:
            yield
        finally:
            self._num_keeping -= 1
            self._mark_held()

    async def start_canary(
        self, variant: Variant, share: float, *, expected: str | None = None
    ) -> None:
        """Load a variant, and give it a share of the requests.

        Raises:
            Superseded: another one than ``expected`` is active when its turn comes.
            NarrowgateError: it cannot be loaded.
        """
        async with self._swapping:
            self._check_active(expected)
            if variant is not self.active:
                with self._holding(variant):
                    await variant.ensure_ready()
                    self._try_out(Share(variant, share))

    async def end_canary(self) -> None:
        """Take the canary's share away; it is stopped after its last answer."""
        async with self._swapping:
            canary = self.canary
            self._try_out(None)
            if canary is not None:
                await self._release([canary.variant])

    async def route(self, variant: Variant, slices: Collection[str], share: float) -> None:
        """Load a variant, and send it a share of the requests in some slices.

        One that is not safer than the active variant by then gets none.

        Raises:
            NarrowgateError: it cannot be loaded.
        """
        async with self._swapping:
            before = self.routes.variants
            with self._holding(variant):
                await variant.ensure_ready()
                if self.ladder.index(variant) > self.ladder.index(self.active):
                    self.routes.lead(slices, variant, share)
                    self._tell_routes()
            await self._release(before)

    async def end_routes(self, slices: Collection[str]) -> None:
        """Let slices go where all others go."""
        async with self._swapping:
            before = self.routes.variants
            self.routes.end(slices)
            self._tell_routes()
            await self._release(before)

    async def let_go(self, variant: Variant) -> None:
        """End a variant's load, or stop it after its last answer; not one that is active or held.

        Nobody waits for that; who wants it again waits for its end.
        """
        await self._release([variant])

    def _try_out(self, canary: Share | None) -> None:
        self.canary = canary
        gauge = self._metrics.gauges["canary_traffic_ratio"]
        share = 0.0 if canary is None else canary.share
        for each in self.ladder:
            is_it = canary is not None and canary.variant is each
            gauge.labels(each.spec.alias, each.spec.variant).set(share if is_it else 0)

    def _tell_routes(self) -> None:
        alias, gauge = self.spec.alias, self._metrics.gauges["slice_routed"]
        gauge.remove_by_labels({"model": alias})
        for name, variant in self.routes.shape().items():
            gauge.labels(alias, variant, name).set(1)

    def _check_active(self, expected: str | None) -> None:
        active = self.active.spec.variant
        if expected is not None and active != expected:
            raise Superseded(f"{active} is active by now, and not {expected}")

    def _is_beside(self, variant: Variant) -> bool:
        is_canary = self.canary is not None and self.canary.variant is variant
        return is_canary or variant in self.routes.variants

    @contextmanager
    def _holding(self, *variants: Variant) -> Iterator[None]:
        """Keep variants in memory while the block is open, and those that take requests after."""
        self._holds.update(variants)
        self._mark_held()
        try:
            yield
        finally:
            self._holds.subtract(variants)
            self._mark_held()

    def _mark_held(self) -> None:
        """Tell each variant whether anybody holds it: who lets go ends no other's hold."""
        for each in self.ladder:
            is_kept = self._num_keeping > 0 and each is self.active
            each.is_held = self._holds[each] > 0 or is_kept or self._is_beside(each)

    async def _release(self, variants: Collection[Variant]) -> _Stops:
        """Stop those that nothing leads to any longer, each when its last request has ended.

        That may take hours, and nobody waits for it here.
        """
        self._mark_held()
        unused = [each for each in variants if not each.is_held and each is not self.active]
        grace_s = self._patience.stop_grace_s
        stops = [each.begin_stop(grace_s, drain_s=None) for each in unused]
        await asyncio.sleep(0)  # they have begun: who wants one again waits for its end
        return stops
