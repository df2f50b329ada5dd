"""The outermost border of a request: its id, and an answer for whatever went wrong inside."""

import logging
import re
import time
import uuid

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.envelope import render
from gateway.errors import (
    ApiError,
    ClientGone,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
)
from gateway.logs import is_routine, log_access
from gateway.record import RECORD, REQUEST_ID, RequestRecord, Tracing

logger = logging.getLogger(__name__)

_HEADER = b"x-request-id"
_DURATION = b"openai-processing-ms"
_SANE_ID = re.compile(rb"[\x21-\x7e]{1,128}")
_TRACE_HEADERS = frozenset({b"traceparent", b"tracestate"})
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MAX_PATH = 200


class Border:
    """Gives every reply an ``x-request-id`` and lets no failure out without an error body."""

    def __init__(self, app: ASGIApp, tracing: Tracing | None = None) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        token = REQUEST_ID.set(request_id.decode())
        record = self._open(scope)
        outer = RECORD.set(record)
        started = time.perf_counter()
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                record.status = message["status"]
                milliseconds = b"%d" % round((time.perf_counter() - started) * 1000)
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
            record.duration_s = time.perf_counter() - started
            if record.span is not None:
                record.span.end(record)
            log_access(record)
            RECORD.reset(outer)
            REQUEST_ID.reset(token)

    def _open(self, scope: Scope) -> RequestRecord:
        method, path = scope["method"], scope["path"][:_MAX_PATH]
        if not path.isprintable():  # it must not forge log lines
            path = path.encode("unicode_escape").decode()
        # What is not ASCII could not be sent on.
        found = {
            name: value
            for name, value in scope["headers"]
            if name in _TRACE_HEADERS and value.isascii()
        }
        trace_headers = {}
        if _TRACEPARENT.fullmatch(found.get(b"traceparent", b"")):
            trace_headers = {
                name.decode(): value.decode("latin-1") for name, value in found.items()
            }
        record = RequestRecord(method, path, trace_headers)
        if self._tracing is not None and not is_routine(record):
            record.span = self._tracing.open(method, trace_headers)
        return record


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
