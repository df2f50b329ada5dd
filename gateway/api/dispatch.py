"""One request to the engine that answers it: which one, and which next if that one fails."""

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from gateway.admission.admission import MayUse, Visit
from gateway.demand import Demand
from gateway.errors import (
    ApiError,
    EngineDown,
    EngineFault,
    EngineRefused,
    EngineTimeout,
    Unavailable,
)
from gateway.pool.lease import Lease
from gateway.pool.pool import Pool
from gateway.pool.replica import Replica
from gateway.pool.state import State
from gateway.pool.variant import Variant
from gateway.protocol import EngineInfo
from gateway.specs import VariantSpec
from gateway.trace import RequestTrace
from gateway.upstream import EngineClient, EngineReply

logger = logging.getLogger(__name__)

_TOO_MANY_REQUESTS = 429
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Observer(Protocol):
    """Takes note of a request and its reply, for which it may ask the engine for more."""

    def ask(
        self,
        fields: Mapping[str, Any],
        spec: VariantSpec,
        client: EngineClient,
        info: EngineInfo | None,
    ) -> tuple[Mapping[str, Any], Mapping[str, str]]:
        """Return fields and headers to send to an engine; each attempt asks anew."""

    def decline(self) -> None:
        """Take note that the engine refused what it was asked for beside the request."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request as engines get it."""

    path: str
    model: str
    fields: Mapping[str, Any]
    demand: Demand
    request_id: str
    is_stream: bool
    may_use: MayUse
    visit: Visit
    candidate: Observer | None = None
    """Takes note of it, if it is to be scored."""
    slices: Collection[str] = ()
    """Those that it is in, where any leads to another variant."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An engine's accepted reply: the whole body, or of a stream what comes first.

    Nothing of it has been sent to the client; from here on there is no other attempt.
    """

    lease: Lease
    reply: EngineReply
    head: asyncio.Future[bytes]

    def praise(self) -> None:
        """Note that the engine answered to the end."""
        self.lease.replica.breaker.succeed()

    def blame(self) -> None:
        """Note that the engine broke off in the middle."""
        self.lease.replica.breaker.fail(time.monotonic())


class Dispatch:
    """Tries engines until one has begun to answer.

    An engine that fails before its first byte costs an attempt at another replica of the variant,
    then at the model's fallbacks. Nothing is tried twice that may have been answered: an engine
    that fell silent may still be at work.
    """

    def __init__(self, pool: Pool, *, max_retries: int, patience_s: float) -> None:
        self._pool = pool
        self._max_retries = max_retries
        self._patience_s = patience_s

    async def ask(
        self, question: Question, *, stack: AsyncExitStack, trace: RequestTrace
    ) -> Answer:
        """Return the first answer; what it holds open is closed with ``stack``.

        A stream that stays silent for ``patience_s`` counts as begun, so that the client can be
        told that work goes on.

        Raises:
            ApiError: nobody can answer; the first reason is the one that is told.
        """
        errors: list[ApiError] = []
        first, *others = self._targets(question)
        targets = [first, *(each for each in others if question.may_use(each.spec.alias))]
        for variant, may_wait in _in_turn(targets):
            failed: set[Replica] = set()
            while len(failed) <= self._max_retries:
                attempt = AsyncExitStack()
                using = self._pool.use(
                    variant, question.demand, excluding=failed, may_wait=may_wait
                )
                try:
                    if variant.spec.alias != first.spec.alias:
                        attempt.enter_context(question.visit(variant.spec.alias))
                    lease = await attempt.enter_async_context(using)
                except Unavailable as error:
                    await attempt.aclose()
                    errors.append(error)
                    break
                except BaseException:
                    await attempt.aclose()
                    raise
                try:
                    trace.route(variant.spec.alias, variant.spec.variant, question.is_stream)
                    answer = await self._ask(question, lease, attempt)
                except (EngineDown, EngineFault, EngineTimeout, EngineRefused) as error:
                    await attempt.aclose()
                    self._note_failure(lease, error)
                    if not _is_worth_another(error):
                        raise
                    trace.retry()
                    errors.append(error)
                    failed.add(lease.replica)
                except BaseException:
                    await attempt.aclose()
                    raise
                else:
                    if not question.is_stream:
                        answer.praise()
                    stack.push_async_exit(attempt)
                    return answer
        if self._targets(question)[0] is not first:
            # It was swapped out while the request waited for it.
            return await self.ask(question, stack=stack, trace=trace)
        raise errors[0]

    def _targets(self, question: Question) -> list[Variant]:
        return self._pool.targets(question.model, question.request_id, question.slices)

    async def _ask(self, question: Question, lease: Lease, attempt: AsyncExitStack) -> Answer:
        fields, headers, candidate = question.fields, _NO_HEADERS, question.candidate
        if candidate is not None:
            fields, headers = candidate.ask(fields, lease.spec, lease.client, lease.replica.info)
        sending = lease.client.generate(question.path, fields, question.request_id, headers)
        try:
            reply = await attempt.enter_async_context(sending)
        except EngineRefused as error:
            if candidate is None or error.status != 400 or fields == question.fields:
                raise
            # It may be what was asked for beside; the client is to be told of its own alone.
            candidate.decline()
            plain = lease.client.generate(question.path, question.fields, question.request_id)
            reply = await attempt.enter_async_context(plain)
        if not question.is_stream:
            head = asyncio.ensure_future(reply.body())
            attempt.callback(head.cancel)
            await head
            return Answer(lease, reply, head)
        if not reply.content_type.startswith("text/event-stream"):
            raise EngineFault("the engine did not answer a streamed request with a stream")
        head = asyncio.ensure_future(reply.read())
        attempt.callback(head.cancel)
        await asyncio.wait({head}, timeout=self._patience_s)
        if head.done() and not head.result():
            raise EngineDown("the engine's stream ended before the answer did")
        return Answer(lease, reply, head)

    @staticmethod
    def _note_failure(lease: Lease, error: ApiError) -> None:
        if isinstance(error, EngineRefused):
            return
        lease.replica.breaker.fail(time.monotonic())
        logger.warning("%s failed a request: %s", lease.replica.name, error)


def _in_turn(targets: list[Variant]) -> list[tuple[Variant, bool]]:
    """Return who is tried, and whether to wait for its load: for the first, if no other is up."""
    is_other_ready = any(each.state is State.READY for each in targets[1:])
    return [(each, not index and not is_other_ready) for index, each in enumerate(targets)]


def _is_worth_another(error: ApiError) -> bool:
    """Return whether another engine may try: this one has not answered and is not at work."""
    if isinstance(error, EngineRefused):
        return error.status == _TOO_MANY_REQUESTS
    return not isinstance(error, EngineTimeout)
