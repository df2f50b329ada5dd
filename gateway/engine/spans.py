"""One OpenTelemetry span a sequence: how long it waited, was read and was decoded."""

import time

from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from gateway.engine.sequence import Sequence, SequenceTimes
from gateway.tracing import make_provider, send_rest


class SequenceSpans:
    """Sends the spans; they have vLLM's names for times, in seconds, and no text."""

    def __init__(self, endpoint: str | None, *, model: str) -> None:
        self._model = model
        self._provider = make_provider(endpoint, service="narrowgate-engine")
        self._tracer = self._provider.get_tracer("narrowgate.engine")

    def ended(self, sequence: Sequence, times: SequenceTimes, reason: str) -> None:
        """Send the span of a sequence; ``times`` are of the monotonic clock."""
        now = time.monotonic()
        wall_ns = time.time_ns() - time.monotonic_ns()
        found: dict[str, AttributeValue] = {
            "gen_ai.request.model": self._model,
            "gen_ai.usage.input_tokens": len(sequence.prompt_ids),
            "gen_ai.usage.output_tokens": len(sequence.output_ids),
            "gen_ai.response.finish_reasons": (reason,),
            "gen_ai.latency.e2e": now - times.arrived,
        }
        if times.scheduled is not None:
            found["gen_ai.latency.time_in_queue"] = times.scheduled - times.arrived
            if times.first_token is not None:
                found["gen_ai.latency.time_to_first_token"] = times.first_token - times.arrived
                found["gen_ai.latency.time_in_model_prefill"] = times.first_token - times.scheduled
                found["gen_ai.latency.time_in_model_decode"] = now - times.first_token
        parent = TraceContextTextMapPropagator().extract(sequence.trace_headers, Context())
        span = self._tracer.start_span(
            f"engine {self._model}",
            parent,
            SpanKind.SERVER,
            attributes=found,
            start_time=wall_ns + int(times.arrived * 1e9),
        )
        if reason == "error":
            span.set_status(Status(StatusCode.ERROR))
        span.end(wall_ns + int(now * 1e9))

    def close(self) -> None:
        """Send what is left; blocks for a few seconds at most."""
        send_rest(self._provider)
