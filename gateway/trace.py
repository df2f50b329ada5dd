"""How one request went: it is counted once, however it ends."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Literal

from gateway.errors import (
    KNOWN_CODES,
    ApiError,
    BodyTimeout,
    ClientGone,
    DeadlineExceeded,
    Draining,
    EngineTimeout,
    InternalError,
    ModelLoading,
    Overloaded,
)
from gateway.metrics.family import OTHER
from gateway.protocol import Usage
from gateway.record import RECORD
from gateway.registry import Metrics

Outcome = Literal["ok", "client_abort", "timeout", "rejected", "shed", "error"]

Operation = Literal["chat", "completion", "response", "embedding", "tokenize"]

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "/v1/chat/completions": "chat",
        "/v1/completions": "completion",
        "/v1/responses": "response",
        "/v1/embeddings": "embedding",
        "/tokenize": "tokenize",
        "/detokenize": "tokenize",
    }
)
"""By path, what is counted even if it is turned away before anybody reads it."""

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "abort", "error"})
_OUTCOMES: Mapping[type[ApiError], Outcome] = MappingProxyType(
    {
        BodyTimeout: "timeout",
        DeadlineExceeded: "timeout",
        EngineTimeout: "timeout",
        Draining: "shed",
        ModelLoading: "shed",
        Overloaded: "shed",
    }
)


class RequestTrace:
    """Times and tokens of one request; its labels are configured names, never the client's."""

    def __init__(self, metrics: Metrics, operation: Operation = "chat") -> None:
        self._metrics = metrics
        self._operation = operation
        self._started = time.perf_counter()
        self._model = self._variant = OTHER
        self._is_running = False
        self._is_stream = False
        self._usage: Usage | None = None
        self._outcome: Outcome = "error"
        self._finish_reason = "error"
        self._num_texts = 0
        self._num_charged = 0
        self._last_text: dict[int, float] = {}  # by choice
        self._first_text_s: float | None = None
        self._record = RECORD.get()
        if self._record is not None:
            self._record.operation = operation

    def want(self, model: str) -> None:
        """Note which configured model was asked for: what fails before an engine is its failure."""
        self._model = model

    def route(self, model: str, variant: str, is_stream: bool) -> None:
        """Note which variant's engine works on the request from now on."""
        if self._is_running:
            self._metrics.gauges["requests_running"].labels(self._model, self._variant).dec()
        self._model, self._variant = model, variant
        self._is_running, self._is_stream = True, is_stream
        if self._record is not None:
            self._record.model, self._record.variant = model, variant
        self._metrics.gauges["requests_running"].labels(model, variant).inc()
        histograms = self._metrics.histograms
        self._first = histograms["time_to_first_token_seconds"].labels(model, variant)
        self._inter = histograms["inter_token_latency_seconds"].labels(model, variant)

    def retry(self) -> None:
        """Note that the engine failed before it began, so that another one is tried."""
        self._metrics.counters["request_retries_total"].labels(self._model, self._variant).inc()

    def see_text(self, choice: int = 0) -> None:
        """Note one streamed event that carries text; called once per token, so kept lean."""
        now = time.perf_counter()
        last = self._last_text.get(choice)
        if last is not None:
            self._inter.observe(now - last)
        elif not self._num_texts:
            self._first_text_s = now - self._started
            self._first.observe(self._first_text_s, self._exemplar())
        self._last_text[choice] = now
        self._num_texts += 1

    def see_usage(self, usage: Usage) -> None:
        """Note the engine's own token counts; the last report counts."""
        self._usage = usage

    @property
    def is_ok(self) -> bool:
        """Return whether the reply is complete."""
        return self._outcome == "ok"

    @property
    def age_s(self) -> float:
        """Return the seconds since the request's arrival."""
        return time.perf_counter() - self._started

    def charge(self, num_tokens: int) -> None:
        """Note tokens of another answer to the same request: its key pays for them too."""
        self._num_charged += num_tokens

    def num_tokens(self, prompt_estimate: int) -> int:
        """Return the tokens of prompt and answer so far; unreported, they are estimated."""
        if self._usage is not None:
            own = self._usage.prompt_tokens + self._usage.completion_tokens
        else:
            own = prompt_estimate + self._num_texts if self._is_running else 0
        return own + self._num_charged

    def succeed(self, finish_reason: str) -> None:
        """Note a complete reply."""
        self._outcome = "ok"
        self._finish_reason = finish_reason if finish_reason in FINISH_REASONS else OTHER

    def abandon(self) -> None:
        """Note that the client left before the end."""
        self._outcome, self._finish_reason = "client_abort", "abort"
        phase = ("decode" if self._num_texts else "prefill") if self._is_stream else OTHER
        self._metrics.counters["client_disconnects_total"].labels(self._model, phase).inc()

    def fail(self, error: ApiError) -> None:
        """Note the error that the client was told."""
        default: Outcome = "rejected" if error.status < 500 else "error"
        self._outcome = _OUTCOMES.get(type(error), default)
        self._finish_reason = "error"
        code = error.code if error.code in KNOWN_CODES else OTHER
        status_class = f"{error.status // 100}xx"
        if self._record is not None:
            self._record.error = code
        errors = self._metrics.counters["request_errors_total"]
        errors.labels(self._model, code, status_class).inc()

    def close(self) -> None:
        """Record the request."""
        where = (self._model, self._variant)
        seconds = time.perf_counter() - self._started
        duration = self._metrics.histograms["request_duration_seconds"]
        duration.labels(*where, self._operation, self._outcome).observe(seconds, self._exemplar())
        counters = self._metrics.counters
        ending = (*where, self._operation, self._outcome, self._finish_reason)
        counters["requests_total"].labels(*ending).inc()
        if self._is_running:
            self._metrics.gauges["requests_running"].labels(*where).dec()
        usage = self._found_usage
        if usage.prompt_tokens:
            counters["prompt_tokens_total"].labels(*where).inc(usage.prompt_tokens)
        if usage.completion_tokens:
            counters["generated_tokens_total"].labels(*where).inc(usage.completion_tokens)
        if self._outcome == "ok":
            self._observe_answer(usage)
        self.note()

    def note(self) -> None:
        """Hand what became of the request to its log line and its span."""
        record = self._record
        if record is None:
            return
        record.outcome, record.finish_reason = self._outcome, self._finish_reason
        record.first_token_s = self._first_text_s
        if self._is_running:
            usage = self._found_usage
            record.model, record.variant = self._model, self._variant
            record.input_tokens = usage.prompt_tokens
            record.output_tokens = usage.completion_tokens

    @property
    def _found_usage(self) -> Usage:
        return self._usage or Usage(prompt_tokens=0, completion_tokens=self._num_texts)

    def _exemplar(self) -> dict[str, str] | None:
        """Return what leads from a bucket to the request's trace."""
        trace_id = self._record.trace_id if self._record is not None else None
        return {"trace_id": trace_id} if trace_id else None

    def _observe_answer(self, usage: Usage) -> None:
        """Record the sizes of a whole answer, and how long each of its tokens took."""
        where, histograms = (self._model, self._variant), self._metrics.histograms
        if self._usage is not None:
            histograms["request_prompt_tokens"].labels(*where).observe(usage.prompt_tokens)
            histograms["request_generated_tokens"].labels(*where).observe(usage.completion_tokens)
        num_more = usage.completion_tokens - 1
        if self._first_text_s is not None and len(self._last_text) == 1 and num_more > 0:
            (last,) = self._last_text.values()
            mean_s = (last - self._started - self._first_text_s) / num_more
            histograms["time_per_output_token_seconds"].labels(*where).observe(mean_s)


@contextmanager
def traced(metrics: Metrics, operation: Operation) -> Iterator[RequestTrace]:
    """Open a trace that is recorded when the block ends; an error that leaves it is noted."""
    trace = RequestTrace(metrics, operation)
    try:
        yield trace
    except ApiError as error:
        trace.fail(error)
        raise
    except ClientGone:
        trace.abandon()
        raise
    except BaseException:
        trace.fail(InternalError())
        raise
    finally:
        trace.close()
