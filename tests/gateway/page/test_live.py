"""``GET /admin/live`` over a real gateway: known traffic in, its figures out."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.harness import CHAT, Gateway, body, eventually

MODELS: dict[str, Any] = {
    "tiny": {"model": "fake", "ladder": ["int4", "full"]},
    "other": {"model": "fake", "recipe": "int8"},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway of its own, so that all its traffic is known."""
    settings = {
        "models": MODELS,
        "memory_budget": 1000,
        "shadow": {"reference": {"memory": 200}},
    }
    started = Gateway(tmp_path_factory.mktemp("live"), settings, {})
    started.wait_ready()
    yield started
    started.close()


def live(gateway: Gateway) -> dict[str, Any]:
    """Return the figures."""
    found: dict[str, Any] = gateway.http.get("/admin/live").raise_for_status().json()
    return found


def ended(figures: dict[str, Any], name: str, window: str = "300") -> float:
    """Return how many there were within a window."""
    said = figures["windows"][window]
    count: float = said[name] * said["seconds"]
    return count


def test_known_traffic_is_told(gateway: Gateway) -> None:
    """Requests, tokens, errors and times are those that clients had, variant by variant."""
    eventually(lambda: gateway.status("/ready") == 200)
    for _ in range(5):
        content = body(stream=True, fake={"tokens": 6, "first_s": 0.03, "pace_s": 0.01})
        gateway.http.post(CHAT, json=content).raise_for_status()
    gateway.http.post(CHAT, json=body() | {"model": "other"}).raise_for_status()
    broken = gateway.http.post(CHAT, json=body(fake={"status": 500}))
    assert broken.status_code == 502
    # A stream ends for its client before it is counted.
    eventually(lambda: round(ended(live(gateway)["all"], "requests")) >= 7)
    found = live(gateway)
    models = {each["model"]: each for each in found["models"]}
    tiny = {each["variant"]: each for each in models["tiny"]["variants"]}["int4"]
    for figures, requests, tokens in (
        (found["all"], 7, 34),
        (tiny, 6, 30),
        (models["other"], 1, 4),
    ):
        assert ended(figures, "requests") == pytest.approx(requests, rel=0.01)
        assert ended(figures, "generated_tokens") == pytest.approx(tokens, rel=0.01)
    assert ended(tiny, "errors") == pytest.approx(1, rel=0.01)
    assert ended(models["other"], "errors") == 0
    now = tiny["windows"]["60"]
    assert 0.02 <= now["first_token_p50_s"] <= now["first_token_p95_s"] < 1
    assert 0.008 <= now["inter_token_p50_s"] <= now["inter_token_p95_s"] < 0.5
    assert models["other"]["windows"]["60"]["first_token_p50_s"] is None


def test_the_service_is_told(gateway: Gateway) -> None:
    """Status, age, and the memory of engines against their part of the budget."""
    found = live(gateway)
    assert found["status"] == "ready"
    assert 0 < found["uptime_s"] < 600
    assert found["memory"]["budget_bytes"] == 800  # less what references may hold
    assert found["memory"]["held_bytes"] >= 200
    eventually(lambda: live(gateway)["all"]["running"] == live(gateway)["all"]["waiting"] == 0)


def test_the_series_goes_on(gateway: Gateway) -> None:
    """After one step every column has a value for each time."""
    found = eventually(lambda: (said := live(gateway))["times"] and said)
    for column in found["all"]["series"].values():
        assert len(column) == len(found["times"])
