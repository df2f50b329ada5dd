"""Which engine answers when one fails: other replicas, other variants, engines elsewhere."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually
from tests.ports import free_port

TWO = {"tiny": {"model": "fake", "recipe": "int4", "replicas": 2}}


def replicas(gateway: Gateway) -> list[dict[str, object]]:
    """Return the replicas of the first variant."""
    data = gateway.http.get("/admin/models").json()["data"]
    found: list[dict[str, object]] = data[0]["replicas"]
    return found


def busy_pid(gateway: Gateway) -> int:
    """Return the process id of an engine that has a request."""

    def found() -> int:
        for each in replicas(gateway):
            if each["requests_running"]:
                url = str(each["url"])
                if httpx.get(f"{url}/fake/state").json()["running"]:
                    return int(httpx.get(f"{url}/engine/info").json()["pid"])
        return 0

    return eventually(found)


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_engine_that_dies_before_its_first_byte(
    start_gateway: StartGateway, is_stream: bool
) -> None:
    """The client sees nothing of it: another replica answers."""
    gateway = start_gateway(models=TWO)
    replies: list[httpx.Response] = []

    def ask() -> None:
        request = body(stream=is_stream, fake={"head_s": 2, "tokens": 2})
        replies.append(gateway.http.post(CHAT, json=request))

    asking = threading.Thread(target=ask)
    asking.start()
    os.kill(busy_pid(gateway), signal.SIGKILL)
    asking.join()
    assert replies[0].status_code == 200
    assert " aab" in replies[0].text
    assert gateway.metric("request_retries_total", model="tiny", variant="int4") == 1
    eventually(lambda: gateway.metric("requests_total", outcome="ok") == 1)
    assert gateway.metric("requests_running") == 0


def test_a_request_that_kills_engines_kills_no_more_than_two(start_gateway: StartGateway) -> None:
    """One retry is the limit; then the client is told, and the third replica lives."""
    models = {"tiny": {"model": "fake", "recipe": "int4", "replicas": 3}}
    gateway = start_gateway(models=models, launch={"num_failures": 100})
    reply = gateway.http.post(CHAT, json=body(fake={"fault": "crash"}))
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
    eventually(lambda: [each["state"] for each in replicas(gateway)].count("ready") == 1)
    assert gateway.http.post(CHAT, json=body()).status_code == 200


def test_a_silent_engine_is_not_asked_twice(start_gateway: StartGateway) -> None:
    """Work that may still be going on is not given to another replica as well."""
    gateway = start_gateway(models=TWO, launch={"read_timeout_s": 0.4})
    reply = gateway.http.post(CHAT, json=body(fake={"fault": "hang"}))
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "engine_timeout")
    assert gateway.metric("request_retries_total") == 0


def test_fallback_to_another_model(start_gateway: StartGateway) -> None:
    """While a model's engine is gone its fallback answers, and the reply says who that was."""
    models = {
        "tiny": {"model": "fake", "recipe": "int4", "fallback": ["other"]},
        "other": {"model": "fake", "recipe": "int8"},
    }
    gateway = start_gateway(models=models, launch={"num_failures": 3})
    eventually(lambda: gateway.http.get("/v1/models/other").json()["state"] == "ready")
    first = replicas(gateway)[0]
    pid = int(httpx.get(f"{first['url']}/engine/info").json()["pid"])
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: gateway.http.get("/v1/models/tiny").json()["state"] == "restarting")
    reply = gateway.http.post(CHAT, json=body())
    assert reply.status_code == 200
    assert reply.headers["x-narrowgate-model"] == "other"
    assert reply.headers["x-narrowgate-variant"] == "int8"
    pinned = gateway.http.post(CHAT, json=body() | {"model": "tiny@int4"})
    assert pinned.status_code == 503
    eventually(lambda: gateway.http.get("/v1/models/tiny").json()["state"] == "ready")
    back = gateway.http.post(CHAT, json=body())
    assert back.headers["x-narrowgate-model"] == "tiny"


def test_failing_engine_is_left_alone_for_a_while(start_gateway: StartGateway) -> None:
    """After failures in a row its breaker opens, and requests go to the other replica."""
    gateway = start_gateway(models=TWO)
    failing = body(fake={"status": 500, "body": "{}"})
    for _ in range(4):
        gateway.http.post(CHAT, json=failing)
    assert {each["breaker"] for each in replicas(gateway)} == {"open"}
    # All are open, so none is better than another, and requests still get through.
    assert gateway.http.post(CHAT, json=body()).status_code == 200
    assert "closed" in {each["breaker"] for each in replicas(gateway)}


def test_keep_alive_comments(start_gateway: StartGateway) -> None:
    """While the engine thinks, the client hears comments that its library skips."""
    gateway = start_gateway(sse_keep_alive_s=0.1)
    script = {"tokens": 2, "pace_s": 0.35}
    started = time.monotonic()
    with gateway.stream(script) as response:
        text = response.read().decode()
    lasted_s = time.monotonic() - started
    assert 2 <= text.count(": keep-alive\n\n") <= lasted_s / 0.1 + 1
    assert text.endswith("data: [DONE]\n\n")
    stream = gateway.openai.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        extra_body={"fake": script},
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == " aaa aab"


@contextmanager
def engines_elsewhere(names: list[str]) -> Iterator[list[tuple[str, subprocess.Popen[bytes]]]]:
    """Run fake engines that no gateway has started."""
    running: list[tuple[str, subprocess.Popen[bytes]]] = []
    try:
        running.extend(start_elsewhere(name, free_port()) for name in names)
        yield running
    finally:
        for _, process in running:
            process.kill()
            process.wait()


def start_elsewhere(name: str, port: int) -> tuple[str, subprocess.Popen[bytes]]:
    """Start one of them and wait until it answers."""
    command = [sys.executable, "-m", "tests.gateway.fake_engine"]
    command += ["--served-model-name", name, "--port", str(port)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.TransportError:
            return False

    eventually(answers)
    return url, process


def test_engines_elsewhere(tmp_path: Path) -> None:
    """Two URLs are two replicas: both answer, one may end and come back, none is ended by us."""
    port = free_port()
    with engines_elsewhere(["remote-model", "remote-model"]) as running:
        settings = {
            "port": port,
            "stall_timeout_s": 2,
            "models": {"tiny": {"model": "remote-model", "urls": [url for url, _ in running]}},
        }
        file = tmp_path / "settings.yaml"
        file.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(file)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
                    check_engines_elsewhere(http, running)
            finally:
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=60)
        assert process.returncode == 0
        assert all(each.poll() is None for _, each in running)


def check_engines_elsewhere(
    http: httpx.Client, running: list[tuple[str, subprocess.Popen[bytes]]]
) -> None:
    """Ask through the gateway while an engine goes and comes."""

    def status(path: str) -> int:
        try:
            return http.get(path).status_code
        except httpx.TransportError:
            return 0

    def ask() -> int:
        fields = {"model": "tiny", "messages": [{"role": "user", "content": str(time.time())}]}
        return http.post(CHAT, json=fields).status_code

    def ready() -> int:
        data = http.get("/admin/models").json()["data"]
        return sum(each["state"] == "ready" for each in data[0]["replicas"])

    eventually(lambda: status("/ready") == 200)
    card = http.get("/v1/models/tiny").json()
    assert (card["variant"], card["weight_bits"]) == ("full", 4.5)
    assert [ask() for _ in range(20)] == [200] * 20
    completed = [httpx.get(f"{url}/fake/state").json()["completed"] for url, _ in running]
    assert min(completed) > 1
    url, process = running[0]
    process.kill()
    process.wait()
    assert [ask() for _ in range(10)] == [200] * 10
    eventually(lambda: ready() == 1)
    running[0] = start_elsewhere("remote-model", int(url.rpartition(":")[2]))
    eventually(lambda: ready() == 2)


def test_admin_verbs(start_gateway: StartGateway) -> None:
    """Operators see every variant, load, swap and unload them, and get clear refusals."""
    models = {"tiny": {"model": "fake", "ladder": ["int4", "int8"]}}
    gateway = start_gateway(models=models)
    http = gateway.http

    def ids() -> dict[str, tuple[str, bool]]:
        data = http.get("/admin/models").json()["data"]
        return {each["id"]: (each["state"], each["active"]) for each in data}

    assert ids() == {"tiny@int4": ("ready", True), "tiny@int8": ("stopped", False)}
    loaded = http.post("/admin/models/tiny@int8/load").json()
    assert (loaded["state"], loaded["active"]) == ("ready", False)
    swapped = http.post("/admin/models/tiny@int8/activate").json()
    assert (swapped["variant"], swapped["active"]) == ("int8", True)
    assert ids() == {"tiny@int4": ("stopped", False), "tiny@int8": ("ready", True)}
    assert http.post(CHAT, json=body()).headers["x-narrowgate-variant"] == "int8"
    assert http.post("/admin/models/tiny@int8/unload").json()["state"] == "stopped"
    assert gateway.metric("variant_swaps_total", model="tiny", result="ok") == 1
    assert gateway.metric("active_variant", variant="int8") == 1
    for path, status, code in (
        ("/admin/models/tiny/activate", 400, "invalid_value"),
        ("/admin/models/tiny@int3/activate", 404, "model_not_found"),
        ("/admin/models/other/load", 404, "model_not_found"),
    ):
        reply = http.post(path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


def test_events_over_http(start_gateway: StartGateway) -> None:
    """A follower reads states as they change, numbered, as server-sent events."""
    models = {"tiny": {"model": "fake", "ladder": ["int4", "int8"]}}
    gateway = start_gateway(models=models)

    async def follow() -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        async with (
            httpx.AsyncClient(base_url=gateway.url, timeout=60) as http,
            http.stream("GET", "/admin/events") as response,
        ):
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith(":")
            swap = asyncio.create_task(http.post("/admin/models/tiny@int8/activate"))
            async for line in lines:
                if line.startswith("event: "):
                    found.append({"kind": line.removeprefix("event: ")})
                if line.startswith("data: "):
                    found[-1] |= json.loads(line.removeprefix("data: "))
                    if found[-1] == found[-1] | {"model": "tiny@int4", "state": "stopped"}:
                        break
            assert (await swap).status_code == 200
        return found

    kinds = [event["kind"] for event in asyncio.run(follow())]
    assert kinds[0] == "swap_started"
    assert "progress" in kinds
    assert kinds.index("swap_ended") < len(kinds) - 1


def test_a_fallback_is_bound_by_the_key(start_gateway: StartGateway) -> None:
    """Who may not use the other model gets the error, and who may gets the answer."""
    models = {
        "tiny": {"model": "fake", "recipe": "int4", "fallback": ["other"]},
        "other": {"model": "fake", "recipe": "int8"},
    }
    keys = [{"name": "one", "key": "k-one", "models": ["tiny"]}, {"name": "all", "key": "k-all"}]
    gateway = start_gateway(models=models, api_keys=keys)
    failing = body(fake={"status": 500, "body": "{}"})
    eventually(lambda: gateway.metric("engine_up", model="other") == 1)
    found = {}
    for key in ("k-one", "k-all"):
        headers = {"authorization": f"Bearer {key}"}
        reply = gateway.http.post(CHAT, json=failing, headers=headers)
        found[key] = (reply.status_code, gateway.metric("requests_total", model="other"))
    assert found == {"k-one": (502, 0), "k-all": (502, 1)}


def test_a_fallback_needs_a_place_at_the_other_model(start_gateway: StartGateway) -> None:
    """Requests sent over from a failing model keep to the limit of the one they are sent to."""
    models = {
        "tiny": {"model": "fake", "recipe": "int4", "fallback": ["other"]},
        "other": {"model": "fake", "recipe": "int8", "max_running": 1},
    }
    gateway = start_gateway(models=models)
    eventually(lambda: gateway.metric("engine_up", model="other") == 1)
    failing = body(fake={"status": 500, "body": "{}"})
    with gateway.stream({"tokens": 400, "pace_s": 0.02}, model="other") as stream:
        events = stream.iter_raw()  # kept: without it the stream is closed
        next(events)
        assert gateway.http.post(CHAT, json=failing).status_code == 502
        assert gateway.metric("requests_total", model="other") == 0
    eventually(lambda: gateway.metric("requests_total", model="other") == 1)
    # The place is free again, and is given back each time.
    for count in (2, 3):
        gateway.http.post(CHAT, json=failing)
        assert gateway.metric("requests_total", model="other") == count


def test_fallbacks_follow_however_many_replicas_fail(start_gateway: StartGateway) -> None:
    """Each target has its own attempts: two failing replicas do not use up those of a fallback."""
    models = {
        "tiny": {"model": "fake", "recipe": "int4", "replicas": 2, "fallback": ["other"]},
        "other": {"model": "fake", "recipe": "int8"},
    }
    gateway = start_gateway(models=models)
    eventually(lambda: gateway.metric("engine_up", model="other") == 1)
    gateway.http.post(CHAT, json=body(fake={"status": 500, "body": "{}"}))
    assert gateway.metric("request_retries_total", model="tiny") == 2
    assert gateway.metric("requests_total", model="other") == 1


def test_hostile_headers_and_depths(start_gateway: StartGateway) -> None:
    """Trace headers that are no ASCII are left out, and deep nesting is no defect of ours."""
    gateway = start_gateway()
    trace = {"traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    headers = {**trace, "tracestate": "v=\xe9"}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    assert gateway.http.post(CHAT, json=body(), headers=raw).status_code == 200
    nested = '{"model": "tiny", "input": ' + "[" * 980 + "]" * 980 + "}"
    kind = {"content-type": "application/json"}
    reply = gateway.http.post("/v1/responses", content=nested, headers=kind)
    assert reply.status_code < 500
