"""The outermost border of a request: its id, and an answer for whatever went wrong inside."""

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import (
    ApiError,
    ClientGone,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
    render,
)

logger = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request being handled, for log lines and for the engine."""

_HEADER = b"x-request-id"
_DURATION = b"openai-processing-ms"
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Border:
    """Gives every reply an ``x-request-id`` and lets no failure out without an error body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        token = REQUEST_ID.set(request_id.decode())
        has_started = False
        arrived = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                milliseconds = b"%d" % round((time.perf_counter() - arrived) * 1000)
                added = [(_HEADER, request_id), (_DURATION, milliseconds)]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientGone:
            return
        except Exception:
            logger.exception("request %s failed", request_id.decode())
            if has_started:
                raise
            await error_response(InternalError())(scope, receive, send_with_id)
        finally:
            REQUEST_ID.reset(token)


def error_response(error: ApiError) -> Response:
    """Return an error as a reply."""
    status, headers, body = render(error)
    return Response(body, status, headers)


async def on_api_error(request: Request, error: Exception) -> Response:
    """Answer one of our own errors."""
    if not isinstance(error, ApiError):
        raise error
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what the router refuses, in the same envelope as everything else."""
    if not isinstance(error, HTTPException):
        raise error
    where = f"{request.method} {request.url.path[:100]}"
    if error.status_code == 404:
        return error_response(RouteNotFound(f"{where}: no such path; see /openapi.json"))
    if error.status_code == 405:
        reply = error_response(MethodNotAllowed(f"{where}: the path has other methods"))
        reply.headers.update(error.headers or {})
        return reply
    return error_response(InvalidRequest(str(error.detail)))


def _request_id(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == _HEADER and _SANE_ID.fullmatch(value):
            found: bytes = value
            return found
    return uuid.uuid4().hex.encode()
