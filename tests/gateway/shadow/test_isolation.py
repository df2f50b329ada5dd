"""Whatever happens to the reference, no request fails for it, and every drop has its reason."""

import os
import signal
from typing import Any

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually, is_alive
from tests.gateway.shadow.counts import counts, settled

SHADOW: dict[str, Any] = {"rate": 1, "probe_every_s": 0, "score_timeout_s": 1}
REASONS = {
    "absent": {"reference"},
    "crash": {"error", "reference"},
    "nan": {"error", "reference"},
    "refuse": {"error", "reference"},
    "hang": {"timeout", "reference"},
}
NUM_REQUESTS = 8


def serve(gateway: Gateway, count: int, model: str = "tiny") -> None:
    """Send requests, every second one streamed, and check that each gets its whole answer."""
    for number in range(count):
        is_stream = bool(number % 2)
        fields = body(stream=is_stream, fake={"tokens": 5}) | {"model": model}
        reply = gateway.http.post(CHAT, json=fields)
        assert reply.status_code == 200
        assert "aae" in reply.text
        assert "error" not in reply.text
    eventually(lambda: gateway.metric("requests_total", model=model, outcome="ok") >= count)
    assert gateway.metric("request_errors_total") == 0


def test_a_broken_reference_costs_scores_alone(start_gateway: StartGateway) -> None:
    """Absent, crashing, hanging or talking nonsense: it is left alone, and all others go on."""
    gateway = start_gateway(
        models={name: {"model": "fake"} for name in (*REASONS, "sound")},
        shadow=SHADOW,
        launch={"score_faults": {name: name for name in REASONS}},
    )
    for name in (*REASONS, "sound"):
        serve(gateway, NUM_REQUESTS, name)
    for name, reasons in REASONS.items():
        found = eventually(settled(gateway, NUM_REQUESTS, name))
        assert found["scored"] == 0
        assert found["dropped"].keys() <= reasons, name
        assert found["dropped"]["reference"] > 0, name
        assert found["reference"]["last_error"]
        assert gateway.metric("shadow_reference_failures_total", model=name) >= 1
    found = eventually(settled(gateway, NUM_REQUESTS, "sound"))
    assert found["scored"] == NUM_REQUESTS
    assert gateway.status("/ready") == 200


def test_a_stopped_reference_is_ended_and_comes_back(start_gateway: StartGateway) -> None:
    """SIGSTOP: a text times out, the process is killed, and a new one scores later texts."""
    gateway = start_gateway(shadow=SHADOW)
    serve(gateway, 1)
    eventually(lambda: counts(gateway)["scored"] == 1)
    (pid,) = gateway.references
    os.kill(pid, signal.SIGSTOP)
    serve(gateway, 5)
    eventually(lambda: not is_alive(pid))
    assert counts(gateway)["dropped"]["timeout"] >= 1

    def scores_again() -> bool:
        serve(gateway, 1)
        return bool(counts(gateway)["scored"] > 1)

    eventually(scores_again)
    _, successor = gateway.references
    # Not even a kill of the gateway leaves one behind.
    gateway.process.kill()
    eventually(lambda: not is_alive(successor))


def test_a_reference_that_hangs_holds_up_no_other_one(start_gateway: StartGateway) -> None:
    """While one text waits for its full model, replies of other models are scored, and counted."""
    gateway = start_gateway(
        models={name: {"model": "fake"} for name in ("hang", "sound")},
        # No score of the one that hangs ends while this test runs.
        shadow=SHADOW | {"score_timeout_s": 120, "queue_size": 4, "tokens_per_second": 1000},
        launch={"score_faults": {"hang": "hang"}},
    )
    serve(gateway, NUM_REQUESTS, "hang")
    eventually(lambda: counts(gateway, "hang")["reference"]["state"] == "ready")
    serve(gateway, NUM_REQUESTS, "sound")
    eventually(lambda: counts(gateway, "sound")["in_flight"] == 0)
    found = counts(gateway, "sound")
    assert found["scored"] >= 2
    assert found["dropped"].keys() <= {"queue_full"}
    serve(gateway, 1, "sound")
    scored = found["scored"]
    eventually(lambda: counts(gateway, "sound")["scored"] > scored)
    held = counts(gateway, "hang")
    assert held["scored"] == 0
    assert held["candidates"] == sum(held["dropped"].values()) + held["in_flight"]
    assert held["in_flight"] <= 4 + 1


def test_a_slice_without_scores_is_stale_alone(start_gateway: StartGateway) -> None:
    """Requests of one slice that are too long to be scored leave that slice stale, no other one."""
    verdict = {"stale_after_s": 1.5, "stale_after_requests": 5}
    slices = {"app": ["long", "short"]}
    gateway = start_gateway(
        shadow={"rate": 1, "max_tokens": 9, "slices": slices, "verdict": verdict}
    )

    def ask(app: str, num_tokens: int) -> None:
        fields = body(fake={"tokens": num_tokens}) | {"metadata": {"app": app}}
        assert gateway.http.post(CHAT, json=fields).status_code == 200

    def state(name: str) -> float:
        labels = {"model": "tiny", "variant": "int4", "slice": name}
        return gateway.metric("drift_state", **labels)

    ask("long", 3)
    ask("short", 3)
    eventually(lambda: counts(gateway)["scored"] == 2)
    eventually(lambda: state("metadata.app:long") == 0)

    def is_stale() -> bool:
        ask("long", 7)
        ask("short", 3)
        return state("metadata.app:long") == 3

    eventually(is_stale)
    assert (state("all"), state("metadata.app:short")) == (0, 0)
    eventually(lambda: not counts(gateway)["in_flight"])
    ask("long", 3)
    eventually(lambda: state("metadata.app:long") == 0)


def test_without_scores_the_verdict_is_stale(start_gateway: StartGateway) -> None:
    """A reference that never starts leaves no verdict looking sound, and fails no request."""
    verdict = {"stale_after_s": 0.3, "stale_after_requests": 20}
    gateway = start_gateway(
        shadow={"rate": 1, "verdict": verdict}, launch={"score_faults": {"tiny": "absent"}}
    )
    for _ in range(25):
        assert gateway.http.post(CHAT, json=body()).status_code == 200
    labels = {"model": "tiny", "variant": "int4", "slice": "all"}
    eventually(lambda: gateway.metric("drift_state", **labels) == 3)
    assert gateway.http.get("/v1/models/tiny").json()["verdict"] == "stale"
