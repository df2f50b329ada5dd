"""Routes that an engine may have or not: responses, embeddings, text to tokens and back."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import read_object
from gateway.api.border import REQUEST_ID
from gateway.api.service import service_of
from gateway.errors import EngineFault
from gateway.forwarding import Forwarded, ResponseRelay, parse_forwarded, read_forwarded
from gateway.parameters import apply_policy
from gateway.streaming import OwnedStreamingResponse, until_disconnect
from gateway.tokens import DetokenizeRequest, TokenizeRequest, parse_detokenize, parse_tokenize
from gateway.trace import Operation, traced

Body = Forwarded | TokenizeRequest | DetokenizeRequest


@dataclass(frozen=True, slots=True)
class _Route:
    """One path; of ``Forwarded`` bodies the fields are the engine's business alone."""

    path: str
    operation: Operation
    parse: Callable[[dict[str, Any]], Body]
    streams: bool = False


_RESPONSES = _Route("/v1/responses", "response", parse_forwarded, streams=True)
_EMBEDDINGS = _Route("/v1/embeddings", "embedding", parse_forwarded)
_TOKENIZE = _Route("/tokenize", "tokenize", parse_tokenize)
_DETOKENIZE = _Route("/detokenize", "tokenize", parse_detokenize)


async def responses(request: Request) -> Response:
    """Pass a request for a response to the model's engine as it is, plain or streamed."""
    return await _forward(request, _RESPONSES)


async def embeddings(request: Request) -> Response:
    """Pass a request for embeddings to the model's engine as it is."""
    return await _forward(request, _EMBEDDINGS)


async def tokenize(request: Request) -> Response:
    """Return the token ids of a prompt or of messages, as the model's engine reads them."""
    return await _forward(request, _TOKENIZE)


async def detokenize(request: Request) -> Response:
    """Return the text of token ids."""
    return await _forward(request, _DETOKENIZE)


async def _forward(request: Request, route: _Route) -> Response:
    service = service_of(request)
    async with AsyncExitStack() as stack:
        trace = stack.enter_context(traced(service.metrics, route.operation))
        fields = await read_object(request, service.settings.max_body_bytes)
        body = route.parse(fields)
        lease = await stack.enter_async_context(service.pool.lease(body.model))
        headers = {"x-narrowgate-variant": lease.spec.variant}
        if not isinstance(body, Forwarded):
            extra = lease.spec.settings.extra_parameters
            headers |= apply_policy(service.settings.unknown_parameters, fields, body, extra)
        is_stream = route.streams and isinstance(body, Forwarded) and bool(body.stream)
        trace.route(lease.spec.alias, lease.spec.variant, is_stream=is_stream)
        opening = stack.enter_async_context(
            lease.client.generate(route.path, fields, REQUEST_ID.get())
        )
        reply = await until_disconnect(request.receive, opening)
        if is_stream:
            if not reply.content_type.startswith("text/event-stream"):
                raise EngineFault("the engine did not answer a streamed request with a stream")
            relay = ResponseRelay(trace)
            owner = stack.pop_all()
            return OwnedStreamingResponse(reply, relay, trace=trace, owner=owner, headers=headers)
        content = await until_disconnect(request.receive, reply.body())
        read_forwarded(content, trace)
        return Response(content, media_type="application/json", headers=headers)
