"""The engine's part of a trace."""

from pathlib import Path

import httpx

from gateway.engine.spans import SequenceSpans
from tests.collector import Collector, attributes
from tests.engine.fakes import (
    ANSWER,
    MODEL,
    body,
    make_runner,
    make_toy_tokenizer,
    running_engine,
)

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_sequence_continues_the_trace(tmp_path: Path) -> None:
    """Each answer is a span in the caller's trace; waiting, reading and decoding add up to it."""
    collector = Collector()
    tokenizer = make_toy_tokenizer(tmp_path)
    spans = SequenceSpans(collector.url, model=MODEL)
    with running_engine(make_runner(tokenizer, ANSWER), tokenizer, spans=spans) as engine:
        route = f"{engine.url}/v1/chat/completions"
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        reply = httpx.post(route, json=body(n=2), headers=headers).json()
        httpx.post(route, json=body())
    first, second, alone = collector.spans
    assert {span.name for span in collector.spans} == {f"engine {MODEL}"}
    assert first.trace_id.hex() == second.trace_id.hex() == TRACE
    assert first.parent_span_id.hex() == PARENT
    assert (alone.trace_id != first.trace_id, alone.parent_span_id) == (True, b"")
    found = attributes(first)
    assert found["gen_ai.usage.input_tokens"] == reply["usage"]["prompt_tokens"]
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    times = ("time_in_queue", "time_in_model_prefill", "time_in_model_decode")
    parts = sum(found[f"gen_ai.latency.{name}"] for name in times)
    lasted_s = (first.end_time_unix_nano - first.start_time_unix_nano) / 1e9
    assert abs(parts - lasted_s) < 1e-3
    assert abs(found["gen_ai.latency.e2e"] - lasted_s) < 1e-3
    assert not any(ANSWER.encode() in content or b"hello" in content for content in collector.raw)
    collector.close()
