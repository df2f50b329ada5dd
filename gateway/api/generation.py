"""``POST /v1/chat/completions`` and ``POST /v1/completions``."""

import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_object
from gateway.api.service import service_of
from gateway.completion import CompletionRequest, parse_completion
from gateway.errors import EngineFault
from gateway.logs import PRIVATE
from gateway.protocol import ChatRequest, parse_chat
from gateway.record import REQUEST_ID
from gateway.streaming import EventRelay, OwnedStreamingResponse, read_plain, until_disconnect
from gateway.trace import Operation, traced

logger = logging.getLogger(__name__)

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
        fields = await read_object(request, service.settings.max_body_bytes)
        if service.settings.log_prompts:
            logger.info("request", extra={PRIVATE: fields})
        body = parse(fields)
        lease = await stack.enter_async_context(service.pool.lease(body.model))
        trace.route(lease.spec.alias, lease.spec.variant, is_stream=bool(body.stream))
        opening = stack.enter_async_context(lease.client.generate(path, fields, REQUEST_ID.get()))
        reply = await until_disconnect(request.receive, opening)
        headers = {"x-narrowgate-variant": lease.spec.variant}
        if body.stream:
            if not reply.content_type.startswith("text/event-stream"):
                raise EngineFault("the engine did not answer a streamed request with a stream")
            relay = EventRelay(
                trace, includes_usage=body.includes_usage, num_choices=body.num_choices
            )
            owner = stack.pop_all()
            return OwnedStreamingResponse(reply, relay, trace=trace, owner=owner, headers=headers)
        content = await until_disconnect(request.receive, reply.body())
        read_plain(content, trace)
        return Response(content, media_type="application/json", headers=headers)
