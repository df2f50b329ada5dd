"""The metrics tell the truth: every request once, exact tokens, closed sets of labels."""

import shutil
import subprocess
from importlib.metadata import version
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics.own import FAMILIES
from gateway.pool.state import State
from gateway.registry import Metrics, render
from gateway.trace import FINISH_REASONS, traced
from tests.gateway.harness import CHAT, Gateway, body, eventually


def test_sent_is_the_sum_of_outcomes(gateway: Gateway) -> None:
    """Good, bad and unroutable requests are each counted exactly once, with their duration."""
    names = ("requests_total", "request_duration_seconds_count")
    before = [gateway.metric(name) for name in names]
    requests: list[dict[str, Any]] = [
        body(),
        body(stream=True),
        body(fake={"tokens": 0}),
        body() | {"max_tokens": 1},
        body() | {"model": "nope"},
        body() | {"temperature": 9},
        body() | {"n": 3},
        body(fake={"status": 500}),
        body(stream=True, fake={"fault": "garbage"}),
        body(stream=True, fake={"fault": "truncate"}),
        {},
    ]
    for request in requests:
        gateway.http.post(CHAT, json=request)
    gateway.http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    gateway.http.post(CHAT, content=b"{}")
    expected = [count + 13 for count in before]
    eventually(lambda: [gateway.metric(name) for name in names] == expected)
    assert gateway.metric("requests_running") == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asks", [False, True])
def test_tokens_are_exact(gateway: Gateway, stream: bool, asks: bool) -> None:
    """Both token counters grow by what the engine reports, whether or not the client asks."""
    before = _tokens(gateway)
    options = {"stream_options": {"include_usage": asks}} if stream else {}
    gateway.http.post(CHAT, json=body(stream=stream, fake={"tokens": 37}) | options)
    eventually(lambda: _tokens(gateway) == (before[0] + 3, before[1] + 37))


def test_engine_without_usage(gateway: Gateway) -> None:
    """Where an engine reports no usage, streamed events are the generated tokens."""
    before = _tokens(gateway)
    gateway.http.post(CHAT, json=body(stream=True, fake={"tokens": 9, "with_usage": False}))
    eventually(lambda: _tokens(gateway) == (before[0], before[1] + 9))


def test_times_of_a_stream(gateway: Gateway) -> None:
    """A stream of n tokens gives one time to first token and n - 1 intervals of the right size."""
    names = ("time_to_first_token_seconds", "inter_token_latency_seconds")
    before = {name: _histogram(gateway, name) for name in names}
    reply = gateway.http.post(
        CHAT, json=body(stream=True, fake={"tokens": 10, "pace_s": 0.02, "first_s": 0.3})
    )
    after = {name: _histogram(gateway, name) for name in names}
    first, inter = (
        tuple(now - old for now, old in zip(after[name], before[name], strict=True))
        for name in names
    )
    assert (first[0], inter[0]) == (1, 9)
    # Whoever is kept from running sees the first token late, and the next ones at once.
    assert first[1] >= 0.29
    assert 0.29 + 9 * 0.019 <= first[1] + inter[1] <= reply.elapsed.total_seconds()


def test_unknown_names_never_become_labels(gateway: Gateway) -> None:
    """Invented models, paths and codes do not add one series."""
    for index in range(3):
        _attack(gateway, index)
    before = len(gateway.http.get("/metrics").text.splitlines())
    for index in range(100):
        _attack(gateway, index)
    text = gateway.http.get("/metrics").text
    assert len(text.splitlines()) == before
    assert "invented" not in text


def test_model_info(gateway: Gateway) -> None:
    """One info series, both sizes and the cache's describe the served model."""
    info = {
        "model": "tiny",
        "variant": "int4",
        "recipe": "int4",
        "recipe_digest": "0" * 64,
        "source_digest": "f" * 64,
        "weight_bits": "4.50",
        "base_dtype": "bfloat16",
        "backend": "fake",
        "numerics": "int4-g32-asym:W4A16 none:W16A16",
        "kernels": "int4-g32-asym:fake",
        "kv_dtype": "",
    }
    assert gateway.metric("model_info", **info) == 1
    labels = {"model": "tiny", "variant": "int4", "recipe": "int4"}
    assert gateway.metric("weights_bytes", **labels) == 1000
    assert gateway.metric("weights_uncompressed_bytes", **labels) == 4000
    assert gateway.metric("kv_bytes_per_token", **labels) == 120
    assert gateway.metric("engine_up", model="tiny", variant="int4") == 1


def test_state_and_build(gateway: Gateway) -> None:
    """Every state is a series, 1 for the current one alone; the version is a label."""
    for state in State:
        value = gateway.metric("model_state", model="tiny", variant="int4", state=state.value)
        assert value == (state is State.READY)
    states = [line for line in gateway.http.get("/metrics").text.splitlines() if "_state{" in line]
    assert len(states) == len(State)
    assert gateway.metric("build_info", version=version("narrowgate")) == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_complaint(gateway: Gateway) -> None:
    """The exposition passes Prometheus' own linter."""
    gateway.http.post(CHAT, json=body(stream=True))
    text = gateway.http.get("/metrics").text
    check = subprocess.run(
        ["promtool", "check", "metrics"],  # noqa: S607 (found on the path by intent)
        input=text,
        capture_output=True,
        text=True,
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_formats(gateway: Gateway) -> None:
    """Plain text by default, OpenMetrics for who asks, and no `_created` series in either."""
    gateway.http.post(CHAT, json=body())
    openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
    for headers, kind in (({}, "text/plain"), (openmetrics, "application/openmetrics-text")):
        reply = gateway.http.get("/metrics", headers=headers)
        assert reply.headers["content-type"].startswith(kind)
        assert "_created" not in reply.text
        assert "narrowgate_requests_total{" in reply.text


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text;version=abc", "text/plain; version=x.y", ";,;version="]
)
def test_odd_accept_headers_get_plain_text(gateway: Gateway, accept: str) -> None:
    """A version that is no number is no reason to fail a scrape."""
    reply = gateway.http.get("/metrics", headers={"accept": accept})
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "narrowgate_engine_up{" in reply.text


def test_every_family_is_exposed_with_its_labels() -> None:
    """The table is what is served: name, type and help of each family."""
    metrics = Metrics()
    text = render(metrics.registry, "")[0].decode()
    exposed = {family.name: family for family in text_string_to_metric_families(text)}
    for family in FAMILIES:
        name = f"narrowgate_{family.name}".removesuffix("_total")
        assert exposed[name].type == family.type
        assert exposed[name].documentation == family.help


def test_odd_finish_reasons_are_folded() -> None:
    """A finish reason outside the closed set becomes `_other`."""
    metrics = Metrics()
    for reason in [*FINISH_REASONS, "invented", ""]:
        with traced(metrics, "chat") as trace:
            trace.succeed(reason)
    text = render(metrics.registry, "")[0].decode()
    assert "invented" not in text
    assert text.count("narrowgate_requests_total{") == len(FINISH_REASONS) + 1


def test_a_crash_is_counted_as_an_error() -> None:
    """A defect inside the block counts as our error and goes on up."""
    metrics = Metrics()
    with pytest.raises(ZeroDivisionError), traced(metrics, "chat"):
        _ = 1 / 0
    text = render(metrics.registry, "")[0].decode()
    assert 'error_type="internal_error",model="_other",status_class="5xx"} 1.0' in text


def _tokens(gateway: Gateway) -> tuple[float, float]:
    prompt = gateway.metric("prompt_tokens_total", model="tiny")
    return prompt, gateway.metric("generated_tokens_total", model="tiny")


def _histogram(gateway: Gateway, name: str) -> tuple[float, float]:
    return gateway.metric(f"{name}_count"), gateway.metric(f"{name}_sum")


def _attack(gateway: Gateway, index: int) -> None:
    invented = f"invented-{index}"
    error = f'{{"error": {{"message": "m", "code": "{invented}"}}}}'
    gateway.http.post(CHAT, json=body() | {"model": invented})
    gateway.http.post(CHAT, json=body(fake={"status": 400, "body": error}))
    gateway.http.get(f"/{invented}")
