"""Spans, as a collector gets them."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gateway.errors import EngineDown, SettingsError
from gateway.record import RECORD, RequestRecord
from gateway.telemetry import open_tracing
from gateway.upstream import EngineClient
from tests.collector import Collector, attributes
from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually
from tests.ports import free_port

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
SECRET = "the vault opens with kumquat"


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Return a running collector."""
    receiver = Collector()
    yield receiver
    receiver.close()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Collector]]:
    """Return a gateway that sends its spans almost at once, and where they go."""
    receiver = Collector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        directory = tmp_path_factory.mktemp("traced")
        gateway = Gateway(directory, {"otlp_endpoint": receiver.url}, {})
    gateway.wait_ready()
    yield gateway, receiver
    gateway.close()
    receiver.close()


def test_spans_of_a_request(traced: tuple[Gateway, Collector]) -> None:
    """A chat is a server span in the client's trace, and a client span for its engine within."""
    gateway, collector = traced
    collector.spans.clear()
    content = body(stream=True, fake={"tokens": 3})
    content["messages"] = [{"role": "user", "content": SECRET}]
    gateway.http.post(CHAT, json=content, headers={"traceparent": TRACEPARENT})
    gateway.http.get("/health")
    eventually(lambda: len(collector.spans) >= 2)
    call, server = collector.spans
    assert (server.name, server.kind) == ("chat tiny", server.SPAN_KIND_SERVER)
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    assert (call.name, call.kind) == ("chat tiny@int4", call.SPAN_KIND_CLIENT)
    assert (call.trace_id, call.parent_span_id) == (server.trace_id, server.span_id)
    found = attributes(server)
    first = found.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < first < (server.end_time_unix_nano - server.start_time_unix_nano) / 1e9
    assert found.pop("gen_ai.usage.input_tokens") > 0
    assert found == {
        "http.request.method": "POST",
        "url.path": CHAT,
        "http.response.status_code": 200,
        "narrowgate.outcome": "ok",
        "narrowgate.variant": "int4",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "narrowgate",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny@int4",
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ["stop"],
    }
    assert not any(b"kumquat" in content for content in collector.raw)


def test_failed_requests(traced: tuple[Gateway, Collector]) -> None:
    """An engine's failure marks both spans; a refused request is no fault of the server."""
    gateway, collector = traced
    collector.spans.clear()
    gateway.http.post(CHAT, json=body(fake={"status": 500, "body": SECRET}))
    gateway.http.post(CHAT, json=body() | {"model": "who"})
    eventually(lambda: len(collector.spans) >= 3)
    call, failed, refused = collector.spans
    assert call.status.code == failed.status.code == call.status.STATUS_CODE_ERROR
    assert attributes(call)["error.type"] == "EngineFault"
    assert attributes(failed)["error.type"] == "engine_error"
    assert refused.name == "POST"
    assert refused.status.code == refused.status.STATUS_CODE_UNSET
    assert attributes(refused)["error.type"] == "model_not_found"
    assert not any(b"kumquat" in content for content in collector.raw)


def test_last_spans_are_sent_at_the_end(
    start_gateway: StartGateway, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has not been sent when the gateway is stopped is sent then."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    gateway = start_gateway(otlp_endpoint=collector.url)
    gateway.http.post(CHAT, json=body())
    gateway.process.terminate()
    assert gateway.process.wait(30) == 0
    assert [span.name for span in collector.spans] == ["chat tiny@int4", "chat tiny"]


def test_no_collector_delays_no_end() -> None:
    """With nobody listening at the endpoint the last spans are given up after two seconds."""
    tracing = open_tracing(f"http://127.0.0.1:{free_port()}")
    if tracing is None:
        pytest.fail("there are traces to send")
    record = RequestRecord("POST", CHAT, {})
    tracing.open("POST", {}).end(record)
    started = time.monotonic()
    tracing.close()
    assert time.monotonic() - started < 8  # of itself it would try for ten seconds


@pytest.mark.parametrize("is_traced", [True, False])
def test_engine_gets_the_trace(is_traced: bool, collector: Collector) -> None:
    """The engine's request carries the call's span, or what the client sent where none is made."""
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.close()

    async def call() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = EngineClient(f"http://127.0.0.1:{port}", served_name="x", read_timeout_s=5)
        async with server:
            with pytest.raises(EngineDown):
                async with client.generate(CHAT, {}, "id"):
                    pass
        await client.aclose()

    record = RequestRecord("POST", CHAT, {"traceparent": TRACEPARENT})
    tracing = open_tracing(collector.url) if is_traced else None
    if tracing is not None:
        record.span = tracing.open("POST", record.trace_headers)
    token = RECORD.set(record)
    asyncio.run(call())
    RECORD.reset(token)
    found = next(line for line in heads[0].splitlines() if line.startswith("traceparent: "))
    if tracing is None:
        assert found == f"traceparent: {TRACEPARENT}"
    else:
        tracing.close()
        assert found == f"traceparent: 00-{TRACE}-{collector.spans[0].span_id.hex()}-01"


def test_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting without the extra is refused in one line; the standard variable only warns."""
    monkeypatch.setattr("gateway.telemetry.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"otlp_endpoint.*pip install 'narrowgate\[tracing\]'"):
        open_tracing("http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert open_tracing(None) is None


def test_nothing_is_loaded_unasked() -> None:
    """Without endpoint there is no tracing, and OpenTelemetry's SDK is not imported."""
    code = (
        "import sys, gateway.app, gateway.telemetry\n"
        "found = gateway.telemetry.open_tracing(None)\n"
        "sys.exit(found is not None or any('opentelemetry.sdk' in name for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
