"""OpenTelemetry spans of requests and of their calls to engines; needs the extra ``tracing``."""

import os
import threading
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from gateway.record import RequestRecord

_LAST_BATCH_S = 2.0
_OPERATIONS: Mapping[str | None, str] = MappingProxyType(
    {"chat": "chat", "completion": "text_completion"}
)


def make_provider(endpoint: str | None, *, service: str) -> TracerProvider:
    """Return what sends spans to the collector at ``endpoint``, the address without a path.

    Without one the standard variables ``OTEL_EXPORTER_OTLP_*`` decide; ``OTEL_SERVICE_NAME``,
    ``OTEL_RESOURCE_ATTRIBUTES`` and the sampler's variables hold in any case.
    """
    names = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: service}
    provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
    url = None if endpoint is None else f"{endpoint.rstrip('/')}/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider


def send_rest(provider: TracerProvider) -> None:
    """Send what is left and end; blocks for a few seconds at most."""
    # With nobody listening the library tries for much longer.
    last = threading.Thread(target=provider.shutdown, daemon=True)
    last.start()
    last.join(_LAST_BATCH_S)


class OtelTracing:
    """Opens the spans of requests; one a process."""

    def __init__(self, endpoint: str | None) -> None:
        self._provider = make_provider(endpoint, service="narrowgate")
        self._tracer = self._provider.get_tracer("narrowgate", version("narrowgate"))

    def open(self, method: str, trace_headers: Mapping[str, str]) -> "_ServerSpan":
        """Open the span of a request, in the client's trace if it has one."""
        parent = TraceContextTextMapPropagator().extract(trace_headers, Context())
        span = self._tracer.start_span(method, parent, SpanKind.SERVER)
        return _ServerSpan(self._tracer, span)

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        send_rest(self._provider)


class _ServerSpan:
    """One request; holds numbers and names, never text."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span

    @property
    def trace_id(self) -> str | None:
        """Return the id of the trace in hexadecimal; None where it is not kept."""
        context = self._span.get_span_context()
        return format_trace_id(context.trace_id) if context.trace_flags.sampled else None

    def call_engine(self, served_name: str, base_url: str, operation: str | None) -> "_EngineSpan":
        """Open the span of a call within this one."""
        url, name = urlsplit(base_url), _OPERATIONS.get(operation, "chat")
        attributes: dict[str, AttributeValue] = {
            "gen_ai.operation.name": name,
            "gen_ai.request.model": served_name,
            "server.address": url.hostname or "",
            "server.port": url.port or 80,
        }
        context = set_span_in_context(self._span, Context())
        span = self._tracer.start_span(
            f"{name} {served_name}", context, SpanKind.CLIENT, attributes=attributes
        )
        return _EngineSpan(span)

    def end(self, record: RequestRecord) -> None:
        """Close the span with what became of the request."""
        span = self._span
        found: dict[str, AttributeValue | None] = {
            "http.request.method": record.method,
            "url.path": record.path,
            "http.response.status_code": record.status,
            "error.type": record.error,
            "narrowgate.outcome": record.outcome,
        }
        if record.model is not None and record.operation is not None:
            name = _OPERATIONS.get(record.operation, record.operation)
            span.update_name(f"{name} {record.model}")
            found |= {
                "gen_ai.operation.name": name,
                "gen_ai.provider.name": "narrowgate",
                "gen_ai.request.model": record.model,
                "gen_ai.response.model": f"{record.model}@{record.variant}",
                "gen_ai.usage.input_tokens": record.input_tokens,
                "gen_ai.usage.output_tokens": record.output_tokens,
                "gen_ai.response.finish_reasons": (record.finish_reason or "error",),
                "gen_ai.response.time_to_first_chunk": record.first_token_s,
                "narrowgate.variant": record.variant,
            }
        span.set_attributes({key: value for key, value in found.items() if value is not None})
        is_fault = record.outcome in {"error", "timeout"} or (record.status or 0) >= 500
        if is_fault:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


class _EngineSpan:
    """One call of an engine."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def headers(self) -> Mapping[str, str]:
        """Return the headers that continue the trace in the engine."""
        carrier: dict[str, str] = {}
        context = set_span_in_context(self._span, Context())
        TraceContextTextMapPropagator().inject(carrier, context)
        return carrier

    def end(self, error: BaseException | None) -> None:
        """Close the span."""
        if error is not None:
            self._span.set_attribute("error.type", type(error).__name__)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
