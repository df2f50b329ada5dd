"""``POST /admin/side-by-side``: one question to a variant and to the full model, and how far apart.

The numbers are the shadow's: the variant's own answer, read by the full model token by token.
"""

import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from typing import Any

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from compression.recipe import FULL
from gateway.admission.admission import Entry
from gateway.api.body import read_object
from gateway.api.dispatch import Answer, Question
from gateway.api.service import Service, service_of
from gateway.demand import Demand, demand_of
from gateway.errors import (
    EngineDown,
    EngineFault,
    InvalidRequest,
    StartupError,
)
from gateway.protocol import Message
from gateway.record import REQUEST_ID
from gateway.shadow.divergence import Divergence
from gateway.shadow.note import Note
from gateway.shadow.records import Captured, Scorer
from gateway.shadow.scorers import make_scorer
from gateway.shadow.teacher_forcing import divergence_of
from gateway.shadow.token_texts import token_texts
from gateway.specs import VariantSpec
from gateway.streaming import read_plain, until_disconnect
from gateway.trace import RequestTrace, traced
from gateway.wire import ExactWire, Items, validated

MAX_TOKENS = 512
_CHAT = "/v1/chat/completions"


class SideBySide(ExactWire):
    """Body of ``POST /admin/side-by-side``; ``model`` is an alias, or pins a variant."""

    model: str = Field(min_length=1)
    messages: Items[Message] = Field(min_length=1)
    max_tokens: int = Field(default=128, ge=1, le=MAX_TOKENS)
    temperature: float = Field(default=0.0, ge=0, le=2)


@dataclass(frozen=True, slots=True)
class Noted:
    """A variant's answer, what it saw at each token, and the text of each."""

    reply: dict[str, Any]
    captured: Captured
    texts: list[str]


async def side_by_side(request: Request) -> JSONResponse:
    """Return a variant's answer and the full model's, and the divergence on each token."""
    service = service_of(request)
    with ExitStack() as tracing:
        trace = tracing.enter_context(traced(service.metrics, "chat"))
        fields = await read_object(request, service.settings)
        asked = validated(SideBySide, fields)
        spec = service.pool.find(asked.model).spec
        if spec.settings.recipe == FULL and not spec.settings.urls:
            raise InvalidRequest(
                f"{spec.served_name!r} is the full model itself: name a compressed variant",
                param="model",
            )
        demand = _doubled(demand_of(fields))
        entering = service.admission.enter(request, asked.model, demand, trace)
        async with entering as entry:
            pair = _Pair(service, asked, fields, entry)
            in_time = entry.deadline.until_reply(pair.ask(spec, trace, tracing))
            return JSONResponse(await until_disconnect(request.receive, in_time))


class _Pair:
    """One question, asked twice."""

    def __init__(
        self, service: Service, asked: SideBySide, fields: dict[str, Any], entry: Entry
    ) -> None:
        self._service = service
        self._entry = entry
        self._request_id = REQUEST_ID.get()
        self._demand = demand_of(fields)
        self._fields = {
            "messages": fields["messages"],
            "max_tokens": asked.max_tokens,
            "temperature": asked.temperature,
        }

    async def ask(
        self, spec: VariantSpec, trace: RequestTrace, tracing: ExitStack
    ) -> dict[str, Any]:
        """Return both answers with the scores of the variant's, whose answer ends ``tracing``."""
        full = self._full(spec)  # what is missing in the settings is told before anything is asked
        noted = await self._noted(spec, trace, tracing)
        if full is None:
            reply, divergence = await self._by_reference(spec, noted, trace)
        else:
            reply, divergence = await self._by_variant(full, noted, trace)
            trace.note()  # the log line is that of the variant which was asked for
        name = full.served_name if full is not None else f"{spec.alias}@reference"
        return {
            "model": spec.alias,
            "variant": spec.variant,
            "compressed": {"name": spec.served_name, **noted.reply},
            "full": {"name": name, **reply},
            "scores": _scores(divergence, noted.texts),
        }

    def _full(self, spec: VariantSpec) -> VariantSpec | None:
        """Return the ladder's full variant; None: the shadow's reference is to answer."""
        reference = self._service.shadow.reference(spec.alias)
        for shot in self._service.pool.snapshots():
            found = shot.spec.settings
            is_same = (found.model, found.recipe) == (reference.spec.settings.model, FULL)
            if shot.spec.alias == spec.alias and is_same and not found.urls:
                return shot.spec
        if (obstacle := self._service.settings.shadow_obstacle(spec.alias)) is not None:
            raise InvalidRequest(
                f"there is no full model beside {spec.served_name!r}: add 'full' to its 'ladder'; "
                f"or: {obstacle}",
                param="model",
            )
        return None

    async def _noted(self, spec: VariantSpec, trace: RequestTrace, tracing: ExitStack) -> Noted:
        async with AsyncExitStack() as stack:
            note = Note(self._service.shadow.capturing.by_top)
            started = await self._ready(spec)
            answer = await self._dispatch(spec, stack, trace, note)
            seconds = time.perf_counter() - started
            client = answer.lease.client
            content, captured = await note.read(answer.head.result(), client)
            read_plain(content, trace)
            tracing.close()  # loading the full model and scoring are no part of this request
            ids = [position.token_id for position in captured.positions]
            texts = await token_texts(client, ids, self._request_id)
        return Noted(_reply(content, seconds), captured, texts)

    async def _by_variant(
        self, full: VariantSpec, noted: Noted, asked: RequestTrace
    ) -> tuple[dict[str, Any], Divergence]:
        reference = self._service.shadow.reference(full.alias)
        async with AsyncExitStack() as stack:
            with traced(self._service.metrics, "chat") as trace:
                trace.want(full.alias)
                started = await self._ready(full)
                answer = await self._dispatch(full, stack, trace)
                seconds = time.perf_counter() - started
                content = answer.head.result()
                read_plain(content, trace)
                asked.charge(trace.num_tokens(0))
            if reference.is_running:  # the shadow's own numbers come from there
                scorer = await reference.scorer()
            else:
                scorer = _scorer(answer)
            return _reply(content, seconds), await divergence_of(noted.captured, scorer)

    async def _by_reference(
        self, spec: VariantSpec, noted: Noted, asked: RequestTrace
    ) -> tuple[dict[str, Any], Divergence]:
        reference = self._service.shadow.reference(spec.alias)
        try:
            scorer = await reference.scorer()
        except StartupError as error:
            raise EngineDown(str(error)) from error
        with reference.using() as client:
            started = time.perf_counter()
            async with client.generate(_CHAT, self._fields, self._request_id) as reply:
                content = await reply.body()
            told = _reply(content, time.perf_counter() - started)
            asked.charge(_num_tokens(told))
            return told, await divergence_of(noted.captured, scorer)

    async def _ready(self, spec: VariantSpec) -> float:
        """Return when a variant could be asked, so that its load is no part of its time."""
        async with self._service.pool.lease(spec.served_name, borrows=True):
            return time.perf_counter()

    async def _dispatch(
        self,
        spec: VariantSpec,
        stack: AsyncExitStack,
        trace: RequestTrace,
        note: Note | None = None,
    ) -> Answer:
        question = Question(
            path=_CHAT,
            model=spec.served_name,
            fields=self._fields,
            demand=self._demand,
            request_id=self._request_id,
            is_stream=False,
            may_use=self._entry.may_use,
            visit=self._entry.visit,
            candidate=note,
        )
        return await self._service.dispatch.ask(question, stack=stack, trace=trace)


def _scorer(answer: Answer) -> Scorer:
    replica = answer.lease.replica
    if replica.info is None or replica.engine is None:
        raise EngineDown(f"{replica.name} is being stopped: try again")
    return make_scorer(answer.lease.client, replica.info, replica.engine.backend)


def _doubled(demand: Demand) -> Demand:
    return replace(
        demand, prompt_tokens=2 * demand.prompt_tokens, answer_tokens=2 * demand.answer_tokens
    )


def _reply(content: bytes, seconds: float) -> dict[str, Any]:
    try:
        fields = orjson.loads(content)
        choice = fields["choices"][0]
        return {
            "text": choice["message"]["content"] or "",
            "finish_reason": choice["finish_reason"],
            "usage": fields.get("usage"),
            "seconds": round(seconds, 4),
        }
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        raise EngineFault("the engine's reply is no completion") from None


def _num_tokens(reply: dict[str, Any]) -> int:
    usage = reply["usage"] or {}
    return int(usage.get("prompt_tokens", 0)) + int(usage.get("completion_tokens", 0))


def _scores(divergence: Divergence, texts: list[str]) -> dict[str, Any]:
    rows = zip(texts, divergence.kl, divergence.agrees, strict=True)
    return {
        "tokens": [{"text": text, "kl": kl, "agrees": agrees} for text, kl, agrees in rows],
        "first_divergence": divergence.first_divergence,
        "mean_kl": divergence.mean_kl,
        "total_kl": sum(divergence.kl),
        "top1_agreement": sum(divergence.agrees) / len(divergence.agrees),
    }
