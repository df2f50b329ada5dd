"""The shadow over a real gateway process: what is drawn, scored, dropped, and told of it."""

import os
import threading
from typing import Any

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, body, eventually
from tests.gateway.shadow.counts import counts, settled

SHADOW: dict[str, Any] = {"rate": 1, "probe_every_s": 0.2}


def test_replies_are_scored(start_gateway: StartGateway) -> None:
    """Plain and streamed replies of both routes are scored; the client sees the same bytes."""
    gateway = start_gateway(shadow=SHADOW | {"floor_every": 2}, launch={"nll": {"reference": 0.75}})
    texts = {"model": "tiny", "prompt": "one two", "fake": {"tokens": 3}}
    requests = [
        (CHAT, body(fake={"tokens": 4})),
        (CHAT, body(stream=True, fake={"tokens": 4})),
        ("/v1/completions", texts),
        ("/v1/completions", texts | {"stream": True}),
    ]
    replies = [gateway.http.post(path, json=fields) for path, fields in requests]
    found = eventually(settled(gateway, 4), 20)
    assert (found["scored"], found["dropped"]) == (4, {})
    assert found["reference"]["state"] == "ready"

    names = {"model": "tiny", "variant": "int4"}
    eventually(lambda: gateway.metric("probes_total", **names, result="ok") > 1)
    assert gateway.metric("probe_change_nats", **names) == 0

    gateway.http.post("/admin/shadow", json={"model": "tiny", "rate": 0})
    again = [gateway.http.post(path, json=fields) for path, fields in requests]
    assert [each.content for each in again] == [each.content for each in replies]
    assert counts(gateway)["candidates"] == 4

    assert gateway.metric("fidelity_requests_total", **names, slice="all") == 4
    assert gateway.metric("fidelity_tokens_total", **names, slice="all", agree="true") == 14
    assert gateway.metric("fidelity_nll_delta_nats_count", **names) == 4
    assert gateway.metric("fidelity_nll_nats_total", **names, side="variant") == pytest.approx(7)
    assert gateway.metric("fidelity_nll_nats_total", **names, side="full") == pytest.approx(10.5)
    assert gateway.metric("fidelity_kl_nats_total", **names, estimator="topk") > 0.01
    floor = {"model": "tiny", "variant": "full"}
    assert gateway.metric("fidelity_requests_total", **floor) == 2
    assert gateway.metric("fidelity_kl_nats_total", **floor) == pytest.approx(0, abs=1e-12)
    assert gateway.metric("fidelity_output_checks_total", **names, result="ok") == 16
    assert gateway.metric("shadow_reference_tokens_total", model="tiny") > 0


def test_every_end_has_its_reason(start_gateway: StartGateway) -> None:
    """What is not scored is dropped for a reason, and the sums add up."""
    gateway = start_gateway(shadow=SHADOW | {"max_tokens": 9})
    post = gateway.http.post
    post(CHAT, json=body(), headers={"x-narrowgate-shadow": "off"})
    post(CHAT, json=body() | {"store": False})
    post("/v1/completions", json={"model": "tiny", "prompt": "a", "echo": True})
    post(CHAT, json=body(fake={"tokens": 7}))
    post(CHAT, json=body(fake={"tokens": 0}))
    post(CHAT, json=body(fake={"status": 400, "body": "{}"}))
    post(CHAT, json=body(stream=True, fake={"fault": "truncate", "after": 1}))
    with gateway.stream({"tokens": 200, "pace_s": 0.02}) as stream:
        next(stream.iter_raw())
    post(CHAT, json=body())
    found = eventually(settled(gateway, 9), 20)
    assert found["scored"] == 1
    assert found["dropped"] == {
        "private": 2,
        "unsupported": 1,
        "too_long": 1,
        "empty": 1,
        "unfinished": 3,
    }
    for reason, count in found["dropped"].items():
        assert gateway.metric("shadow_dropped_total", model="tiny", reason=reason) == count
    assert gateway.metric("shadow_candidates_total", model="tiny") == 9
    assert gateway.metric("shadow_in_flight", model="tiny") == 0
    # Others' routes are no candidates.
    post("/tokenize", json={"model": "tiny", "prompt": "a"})
    assert counts(gateway)["candidates"] == 9


def test_the_budget_holds(start_gateway: StartGateway) -> None:
    """No more tokens are read than the budget of a minute has; the queue is bounded, too."""
    shadow = SHADOW | {"tokens_per_second": 0.5, "max_tokens": 30}
    gateway = start_gateway(shadow=shadow)
    for _ in range(10):
        gateway.http.post(CHAT, json=body(fake={"tokens": 4}))  # 7 tokens with its prompt
    found = eventually(settled(gateway, 10), 20)
    assert found["scored"] == 4
    assert found["dropped"] == {"budget": 6}
    assert gateway.metric("shadow_reference_tokens_total", model="tiny") == 28


def test_requests_go_first(start_gateway: StartGateway) -> None:
    """While a request runs nothing is scored; what waits for too long is dropped as busy."""
    gateway = start_gateway(shadow=SHADOW | {"queue_size": 1, "queue_s": 0.3})
    slow = threading.Thread(
        target=lambda: gateway.http.post(CHAT, json=body(fake={"tokens": 30, "pace_s": 0.05}))
    )
    slow.start()
    eventually(lambda: gateway.metric("requests_running") == 1)
    # The first one is with the worker, which waits; the second is in the queue.
    for number in range(4):
        gateway.http.post(CHAT, json=body())
        eventually(lambda: counts(gateway)["candidates"] == number + 2)  # noqa: B023 (at once)
    eventually(lambda: counts(gateway)["dropped"].get("queue_full"))
    eventually(lambda: counts(gateway)["dropped"].get("busy"))
    assert counts(gateway)["scored"] == 0
    slow.join()
    found = eventually(settled(gateway, 5), 20)
    assert found["dropped"].keys() == {"queue_full", "busy"}


def test_a_scoring_gives_way(start_gateway: StartGateway) -> None:
    """A text that is being scored is put back when a request comes."""
    gateway = start_gateway(shadow=SHADOW, launch={"score_fault": "hang"})
    gateway.http.post(CHAT, json=body())
    eventually(lambda: counts(gateway)["reference"]["state"] == "ready", 20)
    gateway.http.post(CHAT, json=body(fake={"tokens": 10, "pace_s": 0.03}))
    eventually(lambda: gateway.metric("shadow_yields_total", model="tiny") >= 1)
    assert counts(gateway)["in_flight"] == 2


def test_the_rate_is_changed_live(start_gateway: StartGateway) -> None:
    """The share follows the rate; a wrong one is refused by the field's name."""
    gateway = start_gateway(shadow={"probe_every_s": 0})
    post = gateway.http.post
    post(CHAT, json=body())
    assert counts(gateway)["candidates"] == 0
    assert not gateway.references
    assert post("/admin/shadow", json={"model": "tiny@int4", "rate": 0.5}).status_code == 200
    for _ in range(60):
        post(CHAT, json=body())
    assert 10 < counts(gateway)["candidates"] < 50
    for fields, param in (
        ({"model": "tiny", "rate": 2}, "rate"),
        ({"model": "tiny"}, "rate"),
        ({"model": "tiny", "rate": "all"}, "rate"),
    ):
        refused = post("/admin/shadow", json=fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert post("/admin/shadow", json={"model": "nope", "rate": 1}).status_code == 404


def test_a_client_cannot_ask_for_a_capture(start_gateway: StartGateway) -> None:
    """What an engine understands stays between the gateway and the engine."""
    gateway = start_gateway()
    headers = {"x-narrowgate-capture": "no number", "x-narrowgate-capture-id": "none"}
    assert gateway.http.post(CHAT, json=body(), headers=headers).status_code == 200


def test_an_idle_reference_is_ended(start_gateway: StartGateway) -> None:
    """On demand it runs while it is needed; resident it is there before the first request."""
    shadow = SHADOW | {"reference": {"mode": "on-demand", "idle_s": 0.2}}
    gateway = start_gateway(shadow=shadow)
    assert not gateway.references
    for number in (1, 2):
        gateway.http.post(CHAT, json=body())
        eventually(lambda: counts(gateway)["scored"] == number, 20)  # noqa: B023 (at once)
        eventually(lambda: counts(gateway)["reference"]["state"] == "stopped")
        assert len(gateway.references) == number
        assert gateway.metric("shadow_reference_up", model="tiny") == 0

    resident = start_gateway(shadow=SHADOW | {"reference": {"mode": "resident"}})
    eventually(lambda: counts(resident)["reference"]["state"] == "ready", 20)
    assert resident.metric("shadow_reference_up", model="tiny") == 1
    (pid,) = resident.references
    assert os.getpriority(os.PRIO_PROCESS, pid) == 19
    resident.http.post("/admin/shadow", json={"model": "tiny", "rate": 0})


def test_references_elsewhere(start_gateway: StartGateway) -> None:
    """A reference at a URL is asked under the name that it serves, also while requests run."""
    there = start_gateway()
    url = there.engine_url
    gateway = start_gateway(shadow=SHADOW | {"reference": {"urls": {"tiny": f"{url}/v1"}}})
    gateway.http.post(CHAT, json=body())
    found = eventually(settled(gateway, 1), 20)
    assert (found["scored"], found["reference"]["url"]) == (1, url)
    assert not gateway.references
    assert there.process.poll() is None
