"""The way of a request from its body to an engine: model, rate, turn and deadline."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial

from starlette.requests import Request

from gateway.admission.door import Door, check_model
from gateway.admission.gate import Gate, Ticket
from gateway.admission.keys import KeyRing
from gateway.admission.rate_store import RateStore
from gateway.admission.rates import Rates
from gateway.api_key import ApiKey
from gateway.deadline import Deadline, deadline_of
from gateway.demand import Demand
from gateway.errors import (
    ModelNotFound,
    Overloaded,
    RequestRateExceeded,
    TokenRateExceeded,
)
from gateway.metrics.family import OTHER
from gateway.metrics.own import RejectionReason
from gateway.registry import Metrics
from gateway.settings import Settings
from gateway.streaming import until_disconnect
from gateway.trace import RequestTrace

MayUse = Callable[[str], bool]
Visit = Callable[[str], AbstractContextManager[None]]
"""Takes a place at another model while its block is open."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What an admitted request brings along: its deadline, and headers for its reply."""

    deadline: Deadline
    may_use: MayUse
    """Whether the key opens a model, for the fallbacks of the one that was asked for."""
    visit: Visit
    """Counts the request at one of those fallbacks as well."""
    headers: dict[str, str] = field(default_factory=dict)


class Admission:
    """Lets requests in, one after another where they must wait."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Read the keys.

        Raises:
            SettingsError: the key file or the URL of Redis cannot be used.
        """
        aliases = list(settings.models)
        self.ring = KeyRing(settings.api_keys, settings.api_keys_file, aliases=aliases)
        for key in self.ring.current():
            metrics.begin_key(key.name)
        self.door = Door(settings, self.ring, metrics)
        failures = metrics.counters["rate_store_failures_total"]
        self._store = RateStore(settings.redis_url, on_failure=failures.inc)
        self._rates = Rates(self._store)
        self._metrics = metrics
        self._settings = settings
        self._gates = {
            alias: Gate(model.max_running, model.max_queued)
            for alias, model in settings.models.items()
            if model.max_running is not None
        }
        self._settling: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def enter(
        self, request: Request, model: str, demand: Demand, trace: RequestTrace
    ) -> AsyncIterator[Entry]:
        """Let a request through to its model while the block is open.

        Raises:
            ApiError: the key may not use the model, a limit is reached, or time is over.
            ClientGone: the client left while it waited.
        """
        limit_s = self._settings.request_timeout_s
        deadline = deadline_of(request.headers, limit_s, age_s=trace.age_s)
        key = key_of(request)
        alias = model.partition("@")[0]
        alias = alias if alias in self._settings.models else OTHER
        self._check_model(key, model, alias)
        trace.want(alias)
        async with (
            self._counted(key, demand, alias, trace) as headers,
            self._turn(key, alias, request, deadline),
        ):
            yield Entry(deadline, partial(_may_use, key), partial(self._visit, key), headers)

    @property
    def num_waiting(self) -> int:
        """Return how many requests wait for their turn."""
        return sum(gate.num_waiting for gate in self._gates.values())

    async def close(self) -> None:
        """Finish the books; no request may be inside any more."""
        await asyncio.gather(*self._settling)
        await self._store.close()

    def _check_model(self, key: ApiKey | None, name: str, alias: str) -> None:
        try:
            check_model(key, name)
        except ModelNotFound:
            self._reject(alias, "model_not_allowed")
            raise

    @asynccontextmanager
    async def _counted(
        self, key: ApiKey | None, demand: Demand, alias: str, trace: RequestTrace
    ) -> AsyncIterator[dict[str, str]]:
        if key is None:
            yield {}
            return
        try:
            reservation = await self._rates.reserve(
                key, demand.prompt_tokens + demand.answer_tokens
            )
        except RequestRateExceeded as error:
            is_tokens = isinstance(error, TokenRateExceeded)
            self._reject(alias, "token_rate" if is_tokens else "request_rate")
            raise
        self._metrics.counters["key_requests_total"].labels(key.name).inc()
        try:
            yield dict(reservation.headers)
        finally:
            used = trace.num_tokens(demand.prompt_tokens)
            self._metrics.counters["key_tokens_total"].labels(key.name).inc(used)
            # Nobody's reply waits for the books.
            settling = asyncio.create_task(self._rates.settle(key, reservation.num_tokens, used))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)

    @asynccontextmanager
    async def _turn(
        self, key: ApiKey | None, alias: str, request: Request, deadline: Deadline
    ) -> AsyncIterator[None]:
        gate = self._gates.get(alias)
        if gate is None:
            yield
            return
        if gate.is_full:
            self._reject(alias, "queue_full")
            raise Overloaded(
                f"{gate.num_waiting} requests wait for {alias!r} already: try again",
                retry_after_s=gate.retry_after_s,
            )
        ticket = gate.join(key.name if key is not None else "")
        try:
            if not ticket.is_running:
                with self._waiting(alias):
                    turn = deadline.until_reply(self._wait(gate, ticket, alias))
                    await until_disconnect(request.receive, turn)
            yield
        finally:
            ticket.give_back()

    @contextmanager
    def _visit(self, key: ApiKey | None, alias: str) -> Iterator[None]:
        """Hold a place at a model that answers for another.

        It is there or it is not: whoever waited with a place at one model for a place at another
        could wait for somebody who waits the other way round.
        """
        gate = self._gates.get(alias)
        if gate is None:
            yield
            return
        if not gate.has_room:
            raise Overloaded(f"{alias!r} is busy: try again", retry_after_s=gate.retry_after_s)
        ticket = gate.join(key.name if key is not None else "")
        try:
            yield
        finally:
            ticket.give_back()

    async def _wait(self, gate: Gate, ticket: Ticket, alias: str) -> None:
        timeout_s = self._settings.models[alias].queue_timeout_s
        try:
            async with asyncio.timeout(timeout_s) as timer:
                await ticket.wait()
        except TimeoutError:
            if not timer.expired():
                raise
            self._reject(alias, "queue_timeout")
            raise Overloaded(
                f"no turn at {alias!r} came up within {timeout_s:g} s: try again",
                retry_after_s=gate.retry_after_s,
            ) from None

    @contextmanager
    def _waiting(self, alias: str) -> Iterator[None]:
        gauge = self._metrics.gauges["requests_waiting"].labels(alias)
        gauge.inc()
        try:
            with self._metrics.histograms["queue_seconds"].labels(alias).time():
                yield
        finally:
            gauge.dec()

    def _reject(self, alias: str, reason: RejectionReason) -> None:
        self._metrics.counters["admission_rejections_total"].labels(alias, reason).inc()


def _may_use(key: ApiKey | None, alias: str) -> bool:
    return key is None or key.may_use(alias)


def key_of(request: Request) -> ApiKey | None:
    """Return the key that a request came in with; None where none is needed."""
    key: ApiKey | None = request.state.api_key
    return key
