"""``/admin/models/ALIAS/canary`` over a real gateway process: what it takes, refuses and does."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually
from tests.gateway.shadow.test_ladder_in_action import Traffic, active, settings

CANARY = "/admin/models/tiny/canary"
ORDER: dict[str, Any] = {"variant": "int8", "share": 0.3, "requests": 100}


def variants_of(gateway: Gateway, count: int, **fields: Any) -> list[str]:
    """Return who answered so many requests."""
    replies = [
        gateway.http.post(CHAT, json=body(fake={"tokens": 2}) | fields) for _ in range(count)
    ]
    assert {each.status_code for each in replies} == {200}
    return [each.headers["x-narrowgate-variant"] for each in replies]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Return a gateway with a scored ladder, an unscored one, and a model of one variant."""
    fields = settings("off")
    unscored = {"model": "fake", "ladder": ["int4", "int8"], "shadow": 0, "preload": False}
    fields["models"] |= {"unscored": unscored, "one": {"model": "fake", "preload": False}}
    shared = Gateway(tmp_path_factory.mktemp("canary"), fields, {})
    shared.wait_ready()
    yield shared
    shared.close()


def test_its_whole_life(start_gateway: StartGateway, tmp_path: Path) -> None:
    """It takes its share, survives a kill, and serves once proven; no request fails meanwhile."""
    fields = settings("off")
    fields["shadow"] |= {"ledger": {"path": str(tmp_path / "ledger")}, "max_running": 64}
    gateway = start_gateway(**fields)
    begun = gateway.http.post(CANARY, json=ORDER | {"requests": 100_000})
    assert (begun.status_code, begun.headers["location"]) == (202, CANARY)
    assert begun.json()["canary"]["state"] == "loading"
    running = eventually(lambda: _running(gateway))
    assert (running["variant"], running["by"], running["share"]) == ("int8", "operator", 0.3)
    # Of 200 draws at 0.3, fewer than 1 in 10 million series lie further off than 6 deviations.
    count = variants_of(gateway, 200).count("int8")
    assert abs(count - 60) < 6 * math.sqrt(200 * 0.3 * 0.7)
    assert set(variants_of(gateway, 20, model="tiny@int4")) == {"int4"}
    assert gateway.metric("canary_traffic_ratio", variant="int8") == 0.3
    shares = {each["variant"]: each["canary_share"] for each in _variants(gateway)}
    assert shares == {"int4": None, "int8": 0.3}
    again = gateway.http.post(CANARY, json=ORDER)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "canary_running")
    eventually(lambda: _running(gateway)["scored"] > 0)
    eventually(lambda: gateway.http.get("/admin/fidelity").json()["ladders"]["tiny"]["canary"])
    ended = gateway.http.delete(CANARY)
    assert (ended.status_code, ended.json()["canary"]) == (200, None)
    assert ended.json()["last"]["ending"] == "withdrawn"
    assert set(variants_of(gateway, 20)) == {"int4"}
    assert gateway.http.delete(CANARY).json()["error"]["code"] == "no_canary"
    gateway.http.post(CANARY, json=ORDER | {"share": 0.5})
    eventually(lambda: _running(gateway))
    gateway.process.kill()
    gateway = start_gateway(**fields)
    with Traffic(gateway, clients=4) as traffic:
        eventually(lambda: active(gateway) == "int8", 240)
        served = len(traffic.variants) + 2
        eventually(lambda: len(traffic.variants) > served + 10)
    assert set(traffic.statuses) == {200}
    assert set(traffic.variants[served:]) == {"int8"}
    last = gateway.http.get(CANARY).json()["last"]
    assert (last["variant"], last["ending"]) == ("int8", "promoted")
    assert gateway.metric("canaries_ended_total", variant="int8", result="promoted") == 1
    assert gateway.metric("ladder_steps_total", to="int8", reason="proven") == 1
    states = {"model": "tiny", "variant": "int4", "state": "stopped"}
    eventually(lambda: gateway.metric("model_state", **states) == 1)


def test_its_end_while_it_loads(start_gateway: StartGateway) -> None:
    """The answer comes at once, long before the build has ended; then nothing of it is left."""
    gateway = start_gateway(**settings("off"), launch={"prepare_s": 3, "tidy_s": 2.0})
    assert gateway.http.post(CANARY, json=ORDER).status_code == 202
    loading = {"model": "tiny", "variant": "int8", "state": "loading"}
    eventually(lambda: gateway.metric("model_state", **loading) == 1)
    reply = gateway.http.delete(CANARY)
    assert (reply.status_code, reply.json()["canary"]) == (200, None)
    assert reply.json()["last"]["ending"] == "withdrawn"
    assert reply.elapsed.total_seconds() < 3
    assert gateway.metric("model_state", **loading) == 1
    eventually(lambda: gateway.metric("model_state", **loading) == 0)
    (left,) = (each for each in _variants(gateway) if each["variant"] == "int8")
    assert (left["state"], left["memory_bytes"], left["replicas"]) == ("stopped", 0, [])


def _running(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.http.get(CANARY).json()["canary"] or {}
    return found if found.get("state") == "running" else {}


def _variants(gateway: Gateway) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.http.get("/admin/models").json()["data"]
    return found


@pytest.mark.parametrize(
    ("path", "fields", "status", "words"),
    [
        (
            CANARY,
            ORDER | {"variant": "int2"},
            400,
            "'variant' is 'int2': use one of int4, int8, or add it to the 'ladder' of tiny",
        ),
        (CANARY, ORDER | {"variant": "int4"}, 400, "which serves tiny already"),
        (CANARY, ORDER | {"share": 0.6}, 400, "'share' is 0.6: input should be less than or"),
        (CANARY, ORDER | {"share": 0}, 400, "'share' is 0: input should be greater than 0"),
        (
            CANARY,
            ORDER | {"patience": 9},
            400,
            "'patience' is not known here: use one of variant, ",
        ),
        (CANARY, {"share": 0.1}, 400, "missing required parameter: 'variant'"),
        ("/admin/models/tiny@int8/canary", ORDER, 400, "name the model alone"),
        ("/admin/models/none/canary", ORDER, 404, "no model 'none' is served here"),
        ("/admin/models/one/canary", ORDER, 400, "one has one variant: add others"),
        ("/admin/models/unscored/canary", ORDER, 400, "no request of unscored is scored"),
    ],
)
def test_what_is_refused(
    scored: Gateway, path: str, fields: dict[str, Any], status: int, words: str
) -> None:
    """One line names the field, its value and the remedy; nothing begins."""
    reply = scored.http.post(path, json=fields)
    assert reply.status_code == status
    assert words in reply.json()["error"]["message"]
