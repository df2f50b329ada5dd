"""Whatever happens to the reference, no request fails for it, and every drop has its reason."""

import os
import signal
from typing import Any

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually, is_alive
from tests.gateway.shadow.counts import counts, settled

SHADOW: dict[str, Any] = {"rate": 1, "probe_every_s": 0, "score_timeout_s": 0.2}
NUM_REQUESTS = 12


def serve(gateway: Gateway, count: int) -> None:
    """Send requests, every second one streamed, and check that each gets its whole answer."""
    for number in range(count):
        is_stream = bool(number % 2)
        reply = gateway.http.post(CHAT, json=body(stream=is_stream, fake={"tokens": 5}))
        assert reply.status_code == 200
        assert "aae" in reply.text
        assert "error" not in reply.text
    assert gateway.metric("requests_total", outcome="ok") >= count
    assert gateway.metric("request_errors_total") == 0


@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        ("reference absent", {"reference"}),
        ("crash", {"error", "reference"}),
        ("nan", {"error", "reference"}),
        ("refuse", {"error", "reference"}),
        ("hang", {"timeout", "reference"}),
    ],
)
def test_a_broken_reference_costs_scores_alone(
    start_gateway: StartGateway, fault: str, reasons: set[str]
) -> None:
    """Absent, crashing, hanging or talking nonsense: it is left alone, and requests go on."""
    gateway = start_gateway(shadow=SHADOW, launch={"score_fault": fault})
    serve(gateway, NUM_REQUESTS)
    found = eventually(settled(gateway, NUM_REQUESTS), 20)
    assert found["scored"] == 0
    assert found["dropped"].keys() <= reasons
    assert found["dropped"].get("reference", 0) > 0
    assert found["reference"]["last_error"]
    assert gateway.metric("shadow_reference_failures_total", model="tiny") >= 1
    assert gateway.status("/ready") == 200


def test_a_stopped_reference_is_ended_and_comes_back(start_gateway: StartGateway) -> None:
    """SIGSTOP: a text times out, the process is killed, and a new one scores later texts."""
    gateway = start_gateway(shadow=SHADOW)
    serve(gateway, 1)
    eventually(lambda: counts(gateway)["scored"] == 1, 20)
    (pid,) = gateway.references
    os.kill(pid, signal.SIGSTOP)
    serve(gateway, 5)
    eventually(lambda: not is_alive(pid), 10)
    assert counts(gateway)["dropped"]["timeout"] >= 1

    def scores_again() -> bool:
        serve(gateway, 1)
        return bool(counts(gateway)["scored"] > 1)

    eventually(scores_again, 10)
    assert len(gateway.references) == 2


def test_a_killed_reference_comes_back(start_gateway: StartGateway) -> None:
    """SIGKILL: the next texts are scored by a new one after a pause."""
    gateway = start_gateway(shadow=SHADOW)
    serve(gateway, 1)
    eventually(lambda: counts(gateway)["scored"] == 1, 20)
    os.kill(gateway.references[0], signal.SIGKILL)
    eventually(lambda: counts(gateway)["reference"]["state"] == "paused")

    def scores_again() -> bool:
        serve(gateway, 1)
        return bool(counts(gateway)["scored"] > 1)

    eventually(scores_again, 10)


def test_no_reference_outlives_the_gateway(start_gateway: StartGateway) -> None:
    """Neither a signal to end nor a kill of the gateway leaves one behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        gateway = start_gateway(shadow=SHADOW)
        serve(gateway, 1)
        eventually(lambda: counts(gateway)["scored"] == 1, 20)  # noqa: B023 (at once)
        (pid,) = gateway.references
        gateway.process.send_signal(number)
        gateway.process.wait(10)
        eventually(lambda: not is_alive(pid))  # noqa: B023 (at once)
