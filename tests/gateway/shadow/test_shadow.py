"""The shadow over a real gateway process: what is drawn, scored, dropped, and told of it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually

SHADOW: dict[str, Any] = {"rate": 1, "probe_every_s": 0.2}


def counts(gateway: Gateway, model: str = "tiny") -> dict[str, Any]:
    """Return what became of a model's candidates."""
    found: dict[str, Any] = gateway.http.get("/admin/shadow").json()["models"][model]
    return found


def settled(gateway: Gateway, num_candidates: int) -> Callable[[], dict[str, Any]]:
    """Return what gives the counts once so many candidates have ended, each exactly once."""

    def look() -> dict[str, Any]:
        found = counts(gateway)
        is_over = found["candidates"] == num_candidates and not found["in_flight"]
        if is_over:
            assert found["scored"] + sum(found["dropped"].values()) == num_candidates
        return found if is_over else {}

    return look


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
