"""``POST /v1/chat/completions``."""

from contextlib import AsyncExitStack

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_object
from gateway.api.border import REQUEST_ID
from gateway.api.service import service_of
from gateway.errors import EngineFault
from gateway.protocol import parse_chat
from gateway.streaming import ChatRelay, OwnedStreamingResponse, read_plain, until_disconnect
from gateway.trace import traced


async def chat_completions(request: Request) -> Response:
    """Pass a chat request to the model's engine and its reply back, plain or streamed."""
    service = service_of(request)
    async with AsyncExitStack() as stack:
        trace = stack.enter_context(traced(service.metrics))
        fields = await read_object(request, service.settings.max_body_bytes)
        chat = parse_chat(fields)
        lease = await stack.enter_async_context(service.pool.lease(chat.model))
        trace.route(lease.spec.alias, lease.spec.variant, is_stream=bool(chat.stream))
        opening = stack.enter_async_context(lease.client.chat(fields, REQUEST_ID.get()))
        reply = await until_disconnect(request.receive, opening)
        headers = {"x-narrowgate-variant": lease.spec.variant}
        if chat.stream:
            if not reply.content_type.startswith("text/event-stream"):
                raise EngineFault("the engine did not answer a streamed request with a stream")
            relay = ChatRelay(trace, includes_usage=chat.includes_usage)
            owner = stack.pop_all()
            return OwnedStreamingResponse(reply, relay, trace=trace, owner=owner, headers=headers)
        body = await until_disconnect(request.receive, reply.body())
        read_plain(body, trace)
        return Response(body, media_type="application/json", headers=headers)
