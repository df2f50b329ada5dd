"""``POST /v1/chat/completions`` and ``POST /v1/completions``."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_object
from gateway.api.border import REQUEST_ID
from gateway.api.dispatch import Question
from gateway.api.service import service_of
from gateway.completion import CompletionRequest, parse_completion
from gateway.protocol import ChatRequest, parse_chat
from gateway.streaming import EventRelay, OwnedStreamingResponse, read_plain
from gateway.trace import Operation, traced

Parse = Callable[[dict[str, Any]], ChatRequest | CompletionRequest]


async def chat_completions(request: Request) -> Response:
    """Pass a chat request to the model's engine and its reply back, plain or streamed."""
    return await _generate(request, "/v1/chat/completions", parse_chat, "chat")


async def completions(request: Request) -> Response:
    """Pass a completion request to the model's engine and its reply back, plain or streamed."""
    return await _generate(request, "/v1/completions", parse_completion, "completion")


async def _generate(request: Request, path: str, parse: Parse, operation: Operation) -> Response:
    service = service_of(request)
    async with AsyncExitStack() as stack:
        trace = stack.enter_context(traced(service.metrics, operation))
        fields = await read_object(request, service.settings)
        body = parse(fields)
        entering = service.admission.enter(request, body, trace)
        entry = await stack.enter_async_context(entering)
        question = Question(
            path=path,
            model=body.model,
            fields=fields,
            request_id=REQUEST_ID.get(),
            is_stream=bool(body.stream),
            may_use=entry.may_use,
        )
        asking = service.dispatch.ask(question, stack=stack, trace=trace, receive=request.receive)
        answer = await entry.deadline.until_reply(asking)
        spec = answer.lease.spec
        headers = {
            "x-narrowgate-model": spec.alias,
            "x-narrowgate-variant": spec.variant,
            **entry.headers,
        }
        if not body.stream:
            content = answer.head.result()
            read_plain(content, trace)
            return Response(content, media_type="application/json", headers=headers)
        relay = EventRelay(trace, includes_usage=body.includes_usage, num_choices=body.num_choices)
        return OwnedStreamingResponse(
            answer,
            relay,
            trace=trace,
            owner=stack.pop_all(),
            headers=headers,
            deadline=entry.deadline,
            keep_alive_s=service.settings.sse_keep_alive_s,
        )
