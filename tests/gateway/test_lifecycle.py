"""Start, loss, recovery and end of gateway and engine, with real signals and real processes."""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually, is_alive

NARROWGATE = (sys.executable, "-m", "gateway")


def error_code(gateway: Gateway) -> tuple[int, str, str | None]:
    """Return status, code and Retry-After of a chat request."""
    reply = gateway.http.post(CHAT, json=body())
    error = reply.json().get("error", {})
    return reply.status_code, error.get("code", ""), reply.headers.get("retry-after")


def test_first_load_answers_503(start_gateway: StartGateway) -> None:
    """While the first load runs the gateway is alive, not ready, and says when to retry."""
    gateway = start_gateway(ready=False, launch={"prepare_s": 2.0}, load_wait_s=0)
    assert gateway.status("/ready") == 503
    assert error_code(gateway) == (503, "model_loading", "5")
    assert gateway.http.get("/v1/models").json()["data"][0]["state"] == "loading"
    assert gateway.metric("model_state", model="tiny", state="loading") == 1
    assert gateway.metric("model_state", model="tiny", state="ready") == 0
    gateway.wait_ready()
    assert error_code(gateway)[0] == 200
    assert gateway.metric("model_state", model="tiny", state="loading") == 0
    assert gateway.metric("model_load_seconds_count", model="tiny") == 1


def test_load_time_is_the_real_one(start_gateway: StartGateway) -> None:
    """Metric and announcement carry the time that preparing and starting took."""
    started = time.monotonic()
    gateway = start_gateway(launch={"prepare_s": 0.5})
    at_most = time.monotonic() - started
    measured = gateway.metric("model_load_seconds_sum", model="tiny", recipe="int4")
    assert 0.5 <= measured <= at_most
    gateway.process.terminate()
    out, _ = gateway.process.communicate(timeout=30)
    told = re.search(r"tiny@int4 is ready after (\d+\.\d) s", out)
    assert told is not None
    assert float(told[1]) == pytest.approx(measured, abs=0.06)


def test_engine_killed_in_a_stream(start_gateway: StartGateway) -> None:
    """Streams end in an error event, then 503 with Retry-After, then the engine is back."""
    gateway = start_gateway()
    old_pid = gateway.engine_pid
    with gateway.stream({"tokens": 4000, "pace_s": 0.01}) as response:
        lines = response.iter_lines()
        for line in lines:
            if "aad" in line:
                break
        os.kill(old_pid, signal.SIGKILL)
        rest = [line for line in lines if line]
    event = json.loads(rest[-2].removeprefix("data: "))
    assert event["error"]["code"] == "engine_unavailable"
    assert rest[-1] == "data: [DONE]"
    eventually(lambda: gateway.engine_pid != old_pid)
    gateway.wait_ready()
    assert error_code(gateway)[0] == 200
    assert gateway.metric("engine_restarts_total", model="tiny", reason="exit") == 1
    assert gateway.metric("request_errors_total", error_type="engine_unavailable") >= 1


def test_engine_killed_in_a_plain_request(start_gateway: StartGateway) -> None:
    """A plain request gets 503, and while the engine is away so does everybody."""
    gateway = start_gateway(launch={"num_failures": 3})
    fake = {"tokens": 4000, "pace_s": 0.01}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(gateway.http.post, CHAT, json=body(fake=fake))
        eventually(lambda: gateway.engine_state()["running"] == 1)
        os.kill(gateway.engine_pid, signal.SIGKILL)
        reply = pending.result()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_unavailable")
    assert 1 <= int(reply.headers["retry-after"]) <= 120
    eventually(lambda: gateway.status("/ready") == 503)
    assert error_code(gateway) == (503, "engine_unavailable", "2")
    assert gateway.status("/health") == 200
    assert gateway.metric("engine_up", model="tiny") == 0
    gateway.wait_ready()
    assert gateway.metric("engine_up", model="tiny") == 1


def test_silent_engine(start_gateway: StartGateway) -> None:
    """An engine that falls silent ends the request with a timeout: 504, or an event in a stream."""
    gateway = start_gateway(launch={"read_timeout_s": 0.5})
    reply = gateway.http.post(CHAT, json=body(fake={"fault": "hang"}))
    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "engine_timeout")
    with gateway.stream({"fault": "hang", "after": 1}) as response:
        assert '"engine_timeout"' in response.read().decode()
    eventually(lambda: gateway.metric("requests_total", outcome="timeout") == 2)
    eventually(lambda: gateway.engine_state()["cancelled"] == 2)


def test_slow_but_living_stream_is_no_timeout(start_gateway: StartGateway) -> None:
    """The read timeout bounds silence, not the length of a reply."""
    gateway = start_gateway(launch={"read_timeout_s": 1.5})
    with gateway.stream({"tokens": 10, "pace_s": 0.2}) as response:
        assert "[DONE]" in response.read().decode()
    eventually(lambda: gateway.metric("requests_total", outcome="ok") == 1)


def test_stalled_engine_is_replaced(start_gateway: StartGateway) -> None:
    """An engine that is alive but answers no probe is killed and restarted."""
    gateway = start_gateway(stall_timeout_s=1.5)
    old_pid = gateway.engine_pid
    os.kill(old_pid, signal.SIGSTOP)
    eventually(lambda: gateway.metric("engine_restarts_total", reason="stall") == 1)
    gateway.wait_ready()
    assert gateway.engine_pid != old_pid
    assert not is_alive(old_pid)


def refuses(gateway: Gateway) -> bool:
    """Return whether a gateway takes no more connections."""
    try:
        socket.create_connection(("127.0.0.1", gateway.port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_drains(start_gateway: StartGateway) -> None:
    """Running streams finish in full, new requests are refused, exit code 0, no child left."""
    gateway = start_gateway()
    with gateway.stream({"tokens": 100, "pace_s": 0.03}) as response:
        lines = response.iter_lines()
        next(lines)
        gateway.process.terminate()
        eventually(lambda: refuses(gateway))
        assert gateway.process.poll() is None
        text = "\n".join(lines)
    assert text.count('"delta":{"content"') >= 99
    assert text.rstrip().endswith("[DONE]")
    assert '"error"' not in text
    assert gateway.process.wait(30) == 0
    assert not is_alive(gateway.engine_pid)


def test_drain_has_a_limit(start_gateway: StartGateway) -> None:
    """Past the limit open streams end in an error event, and the exit code is still 0."""
    gateway = start_gateway(drain_s=0.3)
    with gateway.stream({"tokens": 4000, "pace_s": 0.01}) as response:
        lines = response.iter_lines()
        next(lines)
        gateway.process.terminate()
        rest = [line for line in lines if line]
    assert '"error"' in rest[-2]
    assert rest[-1] == "data: [DONE]"
    assert gateway.process.wait(30) == 0


def test_second_signal_hurries(start_gateway: StartGateway) -> None:
    """A second signal ends everything at once."""
    gateway = start_gateway()
    with gateway.stream({"tokens": 4000, "pace_s": 0.01}) as response:
        lines = response.iter_lines()
        next(lines)
        gateway.process.send_signal(signal.SIGINT)
        eventually(lambda: refuses(gateway))
        assert gateway.process.poll() is None
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(20) == 0  # the drain would last for 30 s
    assert not is_alive(gateway.engine_pid)
    assert "Traceback" not in gateway.log


def test_interrupt_while_loading(start_gateway: StartGateway) -> None:
    """Ctrl-C before anything was served is quiet and gives 130."""
    gateway = start_gateway(ready=False, launch={"prepare_s": 60})
    gateway.process.send_signal(signal.SIGINT)
    assert gateway.process.wait(30) == 130
    assert "Traceback" not in gateway.log


def test_no_orphan_after_sigkill(start_gateway: StartGateway) -> None:
    """Killing the gateway outright takes the engine with it."""
    gateway = start_gateway()
    pid = gateway.engine_pid
    assert is_alive(pid)
    gateway.process.kill()
    eventually(lambda: not is_alive(pid))


def test_port_in_use_is_told_before_loading(start_gateway: StartGateway) -> None:
    """A taken port is one line with the port and the remedy, at once."""
    gateway = start_gateway(ready=False, launch={"prepare_s": 60})
    second = subprocess.run(
        [*NARROWGATE, "serve", "--model", "smollm2", "--port", str(gateway.port)],
        capture_output=True,
        text=True,
        timeout=50,  # loading would take 60
    )
    assert second.returncode == 2
    assert second.stdout == ""
    assert second.stderr == (
        f"narrowgate: error: port {gateway.port} on 127.0.0.1 is in use: "
        "stop what listens there, or pass another --port\n"
    )


def test_refused_model_ends_the_process(start_gateway: StartGateway) -> None:
    """A model that cannot be loaded is one line and exit code 2."""
    gateway = start_gateway(
        ready=False, models={"tiny": {"model": "refuse"}}, launch={"prepare_s": 0}
    )
    assert gateway.process.wait(30) == 2
    assert gateway.log.splitlines()[-1] == (
        "narrowgate: error: no model 'refuse': name one that exists"
    )


def test_announcement(start_gateway: StartGateway) -> None:
    """When ready, stdout shows sizes, a curl line that works as pasted, and the URLs."""
    gateway = start_gateway()
    gateway.process.terminate()
    out, _ = gateway.process.communicate(timeout=30)
    assert "tiny@int4 is ready after" in out
    assert "weights 0.0 MB -> 0.0 MB, 4.50 bits per weight" in out
    assert f"{gateway.url}/metrics" in out
    assert f"{gateway.url}/v1/models" in out
    assert f"  curl {gateway.url}/v1/chat/completions -H 'content-type: application/json'" in out


def test_two_models(start_gateway: StartGateway) -> None:
    """Each alias has an engine of its own and is routed to it."""
    models = {
        "a": {"model": "x", "recipe": "int4"},
        "b": {"model": "x", "recipe": "full"},
    }
    gateway = start_gateway(models=models)
    eventually(lambda: gateway.http.get("/v1/models/b").json()["state"] == "ready")
    for name, served in (("a", "a@int4"), ("b", "b@full"), ("b@full", "b@full")):
        reply = gateway.http.post(CHAT, json=body() | {"model": name}).json()
        assert reply["model"] == served
