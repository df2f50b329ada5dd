"""Engines that die, hang or end under load: every client is told in time, and service returns."""

import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually, is_alive

CLIENTS = 12
TOLD_WITHIN_S = 8.0
STALL_S = 2.0


class Client(threading.Thread):
    """Asks once and notes how that ended; it must end."""

    def __init__(self, gateway: Gateway, number: int) -> None:
        super().__init__(daemon=True)
        choose = random.Random(number)
        self._url = gateway.url
        phase: dict[str, Any] = choose.choice(
            [{"head_s": 60}, {"first_s": 60}, {"tokens": 6000, "pace_s": 0.01}]
        )
        self._body = body(stream=number % 2 == 0, fake=phase)
        self.ended = 0.0
        self.text = ""
        self.status = 0

    def run(self) -> None:
        """Ask."""
        reply = httpx.post(f"{self._url}{CHAT}", json=self._body, timeout=60)
        self.ended = time.monotonic()
        self.status, self.text = reply.status_code, reply.text


def num_files(pid: int) -> int:
    """Return how many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize(
    ("number", "limit_s"),
    [
        pytest.param(signal.SIGKILL, TOLD_WITHIN_S, id="killed, or out of memory"),
        pytest.param(signal.SIGSEGV, TOLD_WITHIN_S, id="crashed"),
        pytest.param(signal.SIGSTOP, TOLD_WITHIN_S + STALL_S, id="stopped"),
    ],
)
def test_an_engine_is_lost_under_load(
    start_gateway: StartGateway, number: signal.Signals, limit_s: float
) -> None:
    """Clients in every phase get an error or an error event; then all is as before."""
    gateway = start_gateway(stall_timeout_s=STALL_S)
    lost = gateway.engine_pid
    files = num_files(gateway.process.pid)
    clients = [Client(gateway, index) for index in range(CLIENTS)]
    for client in clients:
        client.start()
    eventually(lambda: gateway.engine_state()["running"] == CLIENTS)
    os.kill(lost, number)
    fell = time.monotonic()
    eventually(lambda: gateway.status("/ready") == 503 or gateway.engine_pid != lost, limit_s + 3)
    assert gateway.status("/health") == 200
    for client in clients:
        client.join(30)
        assert not client.is_alive()
        assert '"engine_unavailable"' in client.text
        assert client.status in (200, 503)
    slowest_s = max(client.ended for client in clients) - fell
    assert slowest_s < limit_s
    eventually(lambda: gateway.engine_pid != lost)
    gateway.wait_ready()
    assert gateway.http.post(CHAT, json=body()).status_code == 200
    eventually(lambda: gateway.metric("requests_running") == 0)
    assert not is_alive(lost)
    eventually(lambda: num_files(gateway.process.pid) <= files + 2)  # a probe may be under way
    assert gateway.metric("request_errors_total", error_type="engine_unavailable") == CLIENTS


def test_an_engine_that_ends_in_order(start_gateway: StartGateway) -> None:
    """Exit code 0 is a loss too: what runs is finished, and the engine comes back."""
    gateway = start_gateway()
    lost = gateway.engine_pid
    with gateway.stream({"tokens": 60, "pace_s": 0.01}) as response:
        lines = response.iter_lines()
        next(lines)
        os.kill(lost, signal.SIGTERM)
        assert "data: [DONE]" in list(lines)
    eventually(lambda: gateway.engine_pid != lost)
    gateway.wait_ready()
    assert gateway.http.post(CHAT, json=body()).status_code == 200
