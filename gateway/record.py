"""What is known of the request being handled, for log lines and spans."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, Protocol

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request being handled, for log lines and for the engine."""


class EngineSpan(Protocol):
    """One call of an engine, as seen by a trace."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers that continue the trace in the engine."""

    def end(self, error: BaseException | None) -> None:
        """Close the span."""


class ServerSpan(Protocol):
    """One request, as seen by a trace."""

    @property
    def trace_id(self) -> str | None:
        """Return the id of the trace in hexadecimal; None where it is not kept."""

    def call_engine(self, served_name: str, base_url: str, operation: str | None) -> EngineSpan:
        """Open the span of a call within this one."""

    def end(self, record: "RequestRecord") -> None:
        """Close the span with what became of the request."""


class Tracing(Protocol):
    """What makes spans; :mod:`gateway.tracing` has the real one."""

    def open(self, method: str, trace_headers: Mapping[str, str]) -> ServerSpan:
        """Open the span of a request, in the client's trace if it has one."""

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""


_SAMPLED_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f][13579bdf]")
"""https://www.w3.org/TR/trace-context/: the last bit tells whether the caller keeps the trace."""

_HIDDEN = frozenset({"trace_headers", "span"})


@dataclass(slots=True)
class RequestRecord:
    """One request; the border opens it, its trace fills it in; times are in seconds."""

    method: str
    path: str
    trace_headers: Mapping[str, str]
    span: ServerSpan | None = None
    status: int | None = None
    operation: str | None = None
    model: str | None = None
    variant: str | None = None
    outcome: str | None = None
    finish_reason: str | None = None
    error: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    first_token_s: float | None = None
    duration_s: float | None = None

    @property
    def trace_id(self) -> str | None:
        """Return the id of the trace that the request is in, if that trace is kept."""
        if self.span is not None:
            return self.span.trace_id
        found = _SAMPLED_PARENT.match(self.trace_headers.get("traceparent", ""))
        return found and found[1]

    def known(self) -> dict[str, Any]:
        """Return what is known, as plain data."""
        shown = [each.name for each in fields(self) if each.name not in _HIDDEN]
        found = {name: getattr(self, name) for name in shown}
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in found.items()
            if value is not None
        }


RECORD: ContextVar[RequestRecord | None] = ContextVar("record", default=None)
"""The request being handled; None outside of any."""


@contextmanager
def engine_call(served_name: str, base_url: str) -> Iterator[Mapping[str, str]]:
    """Trace a call of an engine while the block is open; yield the headers that it shall carry."""
    record = RECORD.get()
    if record is None or record.span is None:
        yield record.trace_headers if record else {}
        return
    span = record.span.call_engine(served_name, base_url, record.operation)
    try:
        yield span.headers
    except BaseException as error:
        span.end(error)
        raise
    span.end(None)
