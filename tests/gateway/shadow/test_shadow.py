"""The shadow over a real gateway process: what is drawn, scored, dropped, and told of it."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually
from tests.gateway.shadow.counts import counts, settled

FAKE: dict[str, Any] = {"model": "fake"}
SHADOW: dict[str, Any] = {"rate": 1, "probe_every_s": 0.2, "floor_every": 2, "max_tokens": 9}


@pytest.fixture(scope="module")
def shadowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with resident references; each test has a model of its own."""
    models = {"tiny": FAKE, "ends": FAKE, "live": FAKE | {"shadow": "off"}}
    settings = {"models": models, "shadow": SHADOW | {"reference": {"mode": "resident"}}}
    gateway = Gateway(tmp_path_factory.mktemp("shadow"), settings, {"nll": {"reference": 0.75}})
    gateway.wait_ready()
    yield gateway
    gateway.close()


def test_replies_are_scored(shadowed: Gateway) -> None:
    """Plain and streamed replies of both routes are scored; the client sees the same bytes."""
    gateway = shadowed
    texts = {"model": "tiny", "prompt": "one two", "fake": {"tokens": 3}}
    requests = [
        (CHAT, body(fake={"tokens": 4})),
        (CHAT, body(stream=True, fake={"tokens": 4})),
        ("/v1/completions", texts),
        ("/v1/completions", texts | {"stream": True}),
    ]
    floor = {"model": "tiny", "variant": "full", "slice": "all"}

    def num_floors() -> float:
        return gateway.metric("fidelity_requests_total", **floor)

    replies = []
    for number, (path, fields) in enumerate(requests, 1):
        replies.append(gateway.http.post(path, json=fields))
        # Every second one is scored again for the floor, which the next request would break off.
        eventually(lambda: counts(gateway)["scored"] == number)  # noqa: B023 (at once)
        eventually(lambda: num_floors() == number // 2)  # noqa: B023 (at once)
    found = eventually(settled(gateway, 4))
    assert (found["scored"], found["dropped"]) == (4, {})

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
    costs = names | {"slice": "all"}
    assert gateway.metric("fidelity_nll_nats_total", **costs, side="variant") == pytest.approx(7)
    assert gateway.metric("fidelity_nll_nats_total", **costs, side="full") == pytest.approx(10.5)
    assert gateway.metric("fidelity_kl_nats_total", **costs, estimator="topk") > 0.01
    assert gateway.metric("fidelity_requests_total", **names, slice="length:0-127") == 4
    assert gateway.metric("fidelity_requests_total", **names, slice="position:0-63") == 4
    assert gateway.metric("fidelity_kl_nats_total", **floor) == pytest.approx(0, abs=1e-12)
    assert gateway.metric("fidelity_output_checks_total", **names, result="ok") == 16
    # Each text once, and half of them twice more for the floor.
    assert gateway.metric("shadow_reference_tokens_total", model="tiny") == 24 + 2 * (7 + 5)


def test_references_are_resident_and_nice(shadowed: Gateway) -> None:
    """They are there before the first request, as long as their model is scored at all."""
    eventually(lambda: counts(shadowed, "ends")["reference"]["state"] == "ready")
    assert shadowed.metric("shadow_reference_up", model="ends") == 1
    assert counts(shadowed, "live")["reference"]["state"] == "stopped"
    for pid in shadowed.references:
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19


def test_every_end_has_its_reason(shadowed: Gateway) -> None:
    """What is not scored is dropped for a reason, and the sums add up."""
    gateway, model = shadowed, {"model": "ends"}
    post = gateway.http.post
    post(CHAT, json=body() | model, headers={"x-narrowgate-shadow": "off"})
    post(CHAT, json=body() | model | {"store": False})
    post("/v1/completions", json=model | {"prompt": "a", "echo": True})
    post(CHAT, json=body(fake={"tokens": 7}) | model)
    post(CHAT, json=body(fake={"tokens": 0}) | model)
    post(CHAT, json=body(fake={"status": 400, "body": "{}"}) | model)
    post(CHAT, json=body(stream=True, fake={"fault": "truncate", "after": 1}) | model)
    with gateway.stream({"tokens": 200, "pace_s": 0.02}, **model) as stream:
        next(stream.iter_raw())
    post(CHAT, json=body() | model)
    found = eventually(settled(gateway, 9, "ends"))
    assert found["scored"] == 1
    assert found["dropped"] == {
        "private": 2,
        "unsupported": 1,
        "too_long": 1,
        "empty": 1,
        "unfinished": 3,
    }
    for reason, count in found["dropped"].items():
        assert gateway.metric("shadow_dropped_total", **model, reason=reason) == count
    assert gateway.metric("shadow_candidates_total", **model) == 9
    assert gateway.metric("shadow_in_flight", **model) == 0
    # Others' routes are no candidates.
    post("/tokenize", json=model | {"prompt": "a"})
    assert counts(gateway, "ends")["candidates"] == 9


def test_the_rate_is_changed_live(shadowed: Gateway) -> None:
    """The share follows the rate; a wrong one is refused by the field's name."""
    post = shadowed.http.post
    post(CHAT, json=body() | {"model": "live"})
    assert counts(shadowed, "live")["candidates"] == 0
    assert post("/admin/shadow", json={"model": "live@int4", "rate": 0.5}).status_code == 200
    for _ in range(60):
        post(CHAT, json=body() | {"model": "live"})
    assert 10 < counts(shadowed, "live")["candidates"] < 50
    for fields, param in (
        ({"model": "live", "rate": 2}, "rate"),
        ({"model": "live"}, "rate"),
        ({"model": "live", "rate": "all"}, "rate"),
    ):
        refused = post("/admin/shadow", json=fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert post("/admin/shadow", json={"model": "nope", "rate": 1}).status_code == 404


def test_a_client_cannot_ask_for_a_capture(shadowed: Gateway) -> None:
    """What an engine understands stays between the gateway and the engine."""
    headers = {"x-narrowgate-capture": "no number", "x-narrowgate-capture-id": "none"}
    assert shadowed.http.post(CHAT, json=body(), headers=headers).status_code == 200


def test_references_elsewhere(start_gateway: StartGateway) -> None:
    """A reference at a URL is asked under the name that it serves, also while requests run."""
    url = start_gateway(models={"tiny": {"model": "fake", "recipe": "full"}}).engine_url
    gateway = start_gateway(shadow={"rate": 1, "reference": {"urls": {"tiny": f"{url}/v1"}}})
    with gateway.stream({"tokens": 1000, "pace_s": 0.02}) as stream:
        events = stream.iter_raw()
        next(events)
        gateway.http.post(CHAT, json=body())
        eventually(lambda: counts(gateway)["scored"] == 1)
    assert counts(gateway)["reference"]["url"] == url
    assert not gateway.references


def test_requests_go_first(start_gateway: StartGateway) -> None:
    """While a request runs nothing is scored, and an idle reference is ended."""
    reference = {"idle_s": 0.2}
    shadow = SHADOW | {"queue_size": 1, "queue_s": 1, "reference": reference}
    gateway = start_gateway(shadow=shadow)
    with gateway.stream({"tokens": 1000, "pace_s": 0.02}) as stream:
        events = stream.iter_raw()
        next(events)
        # The first one is with the worker, which waits; the second is in the queue.
        for number in range(4):
            gateway.http.post(CHAT, json=body())
            eventually(lambda: counts(gateway)["candidates"] == number + 2)  # noqa: B023 (at once)
        eventually(lambda: counts(gateway)["dropped"].get("queue_full"))
        eventually(lambda: counts(gateway)["dropped"].get("busy"))
        assert counts(gateway)["scored"] == 0
        assert not gateway.references
    found = eventually(settled(gateway, 5))
    assert found["dropped"].keys() == {"queue_full", "busy", "unfinished"}

    gateway.http.post(CHAT, json=body())
    eventually(lambda: counts(gateway)["scored"] == 1)
    eventually(lambda: counts(gateway)["reference"]["state"] == "stopped")
    assert len(gateway.references) == 1
    assert gateway.metric("shadow_reference_up", model="tiny") == 0


def test_the_end_of_the_gateway_is_the_end_of_the_shadow(start_gateway: StartGateway) -> None:
    """A signal ends it in order while a text is being scored."""
    settings: dict[str, Any] = {"shadow": {"rate": 1, "floor_every": 0}}
    gateway = start_gateway(**settings, launch={"score_faults": {"tiny": "hang"}})
    gateway.http.post(CHAT, json=body())
    eventually(lambda: counts(gateway)["reference"]["state"] == "ready")
    slow = threading.Thread(
        target=lambda: gateway.http.post(CHAT, json=body(fake={"tokens": 10, "pace_s": 0.03}))
    )
    slow.start()
    # What is being scored is put back when a request comes.
    eventually(lambda: gateway.metric("shadow_yields_total", model="tiny") >= 1)
    slow.join()
    eventually(lambda: counts(gateway)["in_flight"] == 2)
    gateway.process.terminate()
    assert gateway.process.wait(30) == 0
    assert "Traceback" not in gateway.log
