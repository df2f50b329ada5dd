"""The routes that an engine answers: one way through admission and dispatch for all of them."""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import let_others, read_object
from gateway.api.dispatch import Question
from gateway.api.service import Service, service_of
from gateway.completion import CompletionRequest, parse_completion
from gateway.demand import Demand, demand_of
from gateway.forwarding import Forwarded, ResponseRelay, parse_forwarded, read_forwarded
from gateway.logs import PRIVATE
from gateway.parameters import apply_policy
from gateway.protocol import ChatRequest, parse_chat
from gateway.record import REQUEST_ID
from gateway.shadow.candidate import Candidate
from gateway.shadow.slices import slices_of
from gateway.streaming import (
    EventRelay,
    OwnedStreamingResponse,
    Relay,
    read_plain,
    until_disconnect,
)
from gateway.tokens import DetokenizeRequest, TokenizeRequest, parse_detokenize, parse_tokenize
from gateway.trace import OPERATIONS, RequestTrace, traced

logger = logging.getLogger(__name__)

Body = ChatRequest | CompletionRequest | Forwarded | TokenizeRequest | DetokenizeRequest


@dataclass(frozen=True, slots=True)
class _Route:
    """One path; the fields of a ``Forwarded`` body are the engine's business alone."""

    path: str
    parse: Callable[[dict[str, Any]], Body]
    read: Callable[[bytes, RequestTrace], None] = read_forwarded
    streams: bool = False


_CHAT = _Route("/v1/chat/completions", parse_chat, read_plain, streams=True)
_TEXT = _Route("/v1/completions", parse_completion, read_plain, streams=True)
_RESPONSES = _Route("/v1/responses", parse_forwarded, streams=True)
_EMBEDDINGS = _Route("/v1/embeddings", parse_forwarded)
_TOKENIZE = _Route("/tokenize", parse_tokenize)
_DETOKENIZE = _Route("/detokenize", parse_detokenize)


async def chat_completions(request: Request) -> Response:
    """Pass a chat request to the model's engine and its reply back, plain or streamed."""
    return await _answer(request, _CHAT)


async def completions(request: Request) -> Response:
    """Pass a completion request to the model's engine and its reply back, plain or streamed."""
    return await _answer(request, _TEXT)


async def responses(request: Request) -> Response:
    """Pass a request for a response to the model's engine as it is, plain or streamed."""
    return await _answer(request, _RESPONSES)


async def embeddings(request: Request) -> Response:
    """Pass a request for embeddings to the model's engine as it is."""
    return await _answer(request, _EMBEDDINGS)


async def tokenize(request: Request) -> Response:
    """Return the token ids of a prompt or of messages, as the model's engine reads them."""
    return await _answer(request, _TOKENIZE)


async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    return await _answer(request, _DETOKENIZE)


async def _answer(request: Request, route: _Route) -> Response:
    service = service_of(request)
    async with AsyncExitStack() as stack:
        trace = stack.enter_context(traced(service.metrics, OPERATIONS[route.path]))
        fields = await read_object(request, service.settings)
        if service.settings.log_prompts:
            logger.info("request", extra={PRIVATE: fields})
        await let_others(request)
        body = route.parse(fields)
        await let_others(request)
        demand = demand_of(fields)
        entering = service.admission.enter(request, body.model, demand, trace)
        entry = await stack.enter_async_context(entering)
        headers = dict(entry.headers)
        slices = _slices(service, body, fields, demand)
        targets = service.pool.targets(body.model, REQUEST_ID.get(), slices)
        spec = targets[0].spec
        settings = spec.settings
        if not isinstance(body, Forwarded):
            headers |= apply_policy(
                service.settings.unknown_parameters,
                fields,
                body,
                settings.extra_parameters,
                may_score_prompts=all(each.spec.settings.may_score_prompts for each in targets),
            )
        candidate = None
        if isinstance(body, (ChatRequest, CompletionRequest)):
            drawing = partial(
                service.shadow.draw, REQUEST_ID.get(), spec.alias, fields, request.headers
            )
            candidate = service.aside.within("the draw", drawing, None)
        if candidate is not None:
            stack.callback(_finish, candidate, trace)
        question = Question(
            path=route.path,
            model=body.model,
            fields=fields,
            demand=demand,
            request_id=REQUEST_ID.get(),
            is_stream=route.streams and _asks_for_a_stream(body),
            may_use=entry.may_use,
            visit=entry.visit,
            candidate=candidate,
            slices=slices,
        )
        asking = service.dispatch.ask(question, stack=stack, trace=trace)
        in_time = entry.deadline.until_reply(asking)
        answer = await until_disconnect(request.receive, in_time)
        spec = answer.lease.spec
        if isinstance(body, (ChatRequest, CompletionRequest)):
            noting = partial(service.judge.served, spec.alias, spec.variant)
            service.aside.within("the judge", noting, None)
        headers |= {"x-narrowgate-model": spec.alias, "x-narrowgate-variant": spec.variant}
        if not question.is_stream:
            content = answer.head.result()
            if candidate is not None:
                content = candidate.see(content)
            route.read(content, trace)
            return Response(content, media_type="application/json", headers=headers)
        relay = _relay(body, trace)
        return OwnedStreamingResponse(
            answer,
            relay if candidate is None else candidate.watch(relay),
            trace=trace,
            owner=stack.pop_all(),
            headers=headers,
            deadline=entry.deadline,
            keep_alive_s=service.settings.sse_keep_alive_s,
        )


def _slices(
    service: Service, body: Body, fields: dict[str, Any], demand: Demand
) -> tuple[str, ...]:
    """Return the slices that a request tells it is in, where the model has routes."""
    is_told = isinstance(body, (ChatRequest, CompletionRequest))
    if not is_told or not service.pool.has_routes(body.model):
        return ()

    def told() -> tuple[str, ...]:
        own, num_tokens = service.judge.rules.own_slices, demand.prompt_tokens
        return slices_of(fields, num_prompt_tokens=num_tokens, own=own)

    return service.aside.within("the slices", told, ())


def _finish(candidate: Candidate, trace: RequestTrace) -> None:
    candidate.finish(is_complete=trace.is_ok)


def _asks_for_a_stream(body: Body) -> bool:
    return not isinstance(body, (TokenizeRequest, DetokenizeRequest)) and bool(body.stream)


def _relay(body: Body, trace: RequestTrace) -> Relay:
    if isinstance(body, (ChatRequest, CompletionRequest)):
        choices = body.num_choices
        return EventRelay(trace, includes_usage=body.includes_usage, num_choices=choices)
    return ResponseRelay(trace)
