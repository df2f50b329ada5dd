"""The trace in which a request came, from its headers to its sequences."""

from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType

from starlette.types import ASGIApp, Receive, Scope, Send

TRACE_HEADERS: ContextVar[Mapping[str, str]] = ContextVar(
    "trace_headers", default=MappingProxyType({})
)
"""``traceparent`` and ``tracestate`` of the request being prepared."""

_NAMES = frozenset({b"traceparent", b"tracestate"})


class TakeTrace:
    """Notes the trace headers of each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            found = [pair for pair in scope["headers"] if pair[0] in _NAMES]
            TRACE_HEADERS.set({name.decode(): value.decode("latin-1") for name, value in found})
        await self._app(scope, receive, send)
