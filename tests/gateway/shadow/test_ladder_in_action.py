"""The ladder over a real gateway process: a rung that breaks its tolerance is replaced."""

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from tests.gateway.conftest import StartGateway
from tests.gateway.harness import CHAT, Gateway, body, eventually

MODELS = {"tiny": {"model": "fake", "ladder": ["int4", "int8"]}}
COOL_DOWN_S = 10
CODE = "domain:code"
ASKED = ("def double(x): return 2 * x", "Tell me about the sea.")
"""A question of code and one that is none."""
BROKEN = {"nll": {"int4": 1.5}}
"""What the int4 engine finds its own tokens to cost; all others find 0.5."""


def settings(mode: str = "on", **ladder: Any) -> dict[str, Any]:
    """Return settings of a ladder under which every request is scored."""
    return {
        "models": dict(MODELS),  # a test may add others
        "shadow": {
            "rate": 1,
            "floor_every": 0,
            "reference": {"mode": "resident"},
            "verdict": {"tolerance": {"all": 0.02}},
            "ladder": {"mode": mode, "cool_down_s": COOL_DOWN_S, **ladder},
        },
    }


class Traffic:
    """Requests one after the other, with room for scores between them, until told to stop.

    Several clients do so side by side.
    """

    def __init__(
        self,
        gateway: Gateway,
        questions: Sequence[str] = ("one two three",),
        *,
        clients: int = 1,
        **fields: Any,
    ) -> None:
        self.statuses: list[int] = []
        self.variants: list[str] = []
        self.answered: list[tuple[str, str]] = []
        """Of each request, its question and the variant that answered it."""
        self.num_cut = 0
        """Streams that did not come to their end."""
        self._gateway = gateway
        self._questions = cycle(questions)
        self._fields = fields
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._gateway.url, timeout=60) as client:
            while not self._is_over.wait(0.01):
                question = next(self._questions)
                messages = [{"role": "user", "content": question}]
                fields = body(fake={"tokens": 2}) | {"messages": messages} | self._fields
                reply = client.post(CHAT, json=fields)
                if fields["stream"] and ("error" in reply.text or "[DONE]" not in reply.text):
                    self.num_cut += 1
                variant = reply.headers.get("x-narrowgate-variant", "")
                self.statuses.append(reply.status_code)
                self.variants.append(variant)
                self.answered.append((question, variant))


def with_routes(path: Path, *pinned: str) -> dict[str, Any]:
    """Return settings under which code drifts alone, and may go elsewhere alone."""
    rules: dict[str, Any] = {"route_slices": True, "canary_share": 0.4, "cool_down_s": 0.5}
    fields = settings(pinned=pinned, **rules)
    fields["shadow"]["verdict"]["tolerance"] = {"all": 1.0, CODE: 0.02}
    fields["shadow"] |= {"ledger": {"path": str(path)}, "max_running": 64}
    return fields


def active(gateway: Gateway) -> str:
    """Return who serves the plain name."""
    found = gateway.http.get("/admin/models").json()["data"]
    return next(str(each["variant"]) for each in found if each["active"])


def ladder(gateway: Gateway) -> dict[str, Any]:
    """Return where the ladder stands."""
    found: dict[str, Any] = gateway.http.get("/admin/fidelity").json()["ladders"]["tiny"]
    return found


def told(gateway: Gateway, kind: str) -> list[dict[str, Any]]:
    """Return all events of a kind so far."""
    events: list[dict[str, Any]] = []
    headers = {"last-event-id": "0"}
    with gateway.http.stream("GET", "/admin/events", headers=headers) as response:
        name = ""
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: ") and name == kind:
                events.append(json.loads(line.removeprefix("data: ")))
                if kind == "ladder_step":
                    break
    return events


def test_a_rung_that_fails_its_tolerance_is_replaced(start_gateway: StartGateway) -> None:
    """int8 serves within one cool-down of the drift, no request fails, event and metric say why."""
    gateway = start_gateway(**settings(), launch=BROKEN)
    with Traffic(gateway) as traffic:
        eventually(lambda: gateway.metric("drift_state", variant="int4", slice="all") == 2)
        drifted = time.monotonic()
        eventually(lambda: active(gateway) == "int8", COOL_DOWN_S)
        assert time.monotonic() - drifted < COOL_DOWN_S
        steps = {"model": "tiny", "from": "int4", "to": "int8", "reason": "drift"}
        eventually(lambda: gateway.metric("ladder_steps_total", **steps) == 1)
        served = len(traffic.variants) + 1  # one may just be noting its answer
        eventually(lambda: len(traffic.variants) > served + 5)
    assert set(traffic.statuses) == {200}
    assert set(traffic.variants[:10]) == {"int4"}
    assert set(traffic.variants[served:]) == {"int8"}
    (event,) = told(gateway, "ladder_step")
    assert (event["act"], event["from"], event["to"], event["result"]) == (
        "step_up",
        "int4",
        "int8",
        "done",
    )
    assert event["reason"].startswith("int4: all drifts (tolerance 0.02 nats")
    (alarm,) = event["evidence"]
    assert alarm["slice"] == "all"
    assert alarm["mean"] > alarm["tolerance"] == 0.02
    assert alarm["n"] > 0
    # The card says so, too, of the variant that was left.
    cards = {each["id"]: each for each in gateway.http.get("/v1/models").json()["data"]}
    assert cards["tiny@int4"]["verdict"] == "drift"
    assert cards["tiny"]["verdict"] in {"learning", "ok"}


def test_a_canary_that_drifts_is_rolled_back(start_gateway: StartGateway) -> None:
    """The rung that was left is tried on a share of the requests, and goes; nobody is failed."""
    rules: dict[str, Any] = {
        "return_after_s": 0.5,
        "return_after_requests": 0,
        "canary_share": 0.5,
        "cool_down_s": 0.5,
        "max_returns": 1,
    }
    gateway = start_gateway(**settings(**rules), launch=BROKEN)
    with Traffic(gateway) as traffic:
        eventually(lambda: active(gateway) == "int8")
        left = len(traffic.variants) + 1
        rolled = {"reason": "not_proven", "to": "int4"}
        eventually(lambda: gateway.metric("ladder_steps_total", **rolled) == 1, 240)
        states = {"model": "tiny", "variant": "int4", "state": "stopped"}
        eventually(lambda: gateway.metric("model_state", **states) == 1)
        served = len(traffic.variants) + 1
        eventually(lambda: len(traffic.variants) > served + 20)
    assert set(traffic.statuses) == {200}
    tried = traffic.variants[left:served]
    tried = tried[tried.index("int4") :]
    assert tried.count("int4") > 3
    assert tried.count("int8") > 3
    assert set(traffic.variants[served:]) == {"int8"}
    assert gateway.metric("ladder_steps_total", reason="return", to="int4") == 1
    assert active(gateway) == "int8"


def test_a_drifting_slice_goes_alone_and_comes_back(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    """Most code goes to int8, all else stays; over a kill and a way back nobody is failed."""
    code, prose = ASKED
    gateway = start_gateway(**with_routes(tmp_path / "ledger", CODE), launch=BROKEN)
    here = Traffic(gateway, ASKED, clients=4, stream=True)
    with here as traffic, Traffic(gateway, [code], model="tiny@int8") as pinned:
        routed = {"from": "int4", "to": "int8", "reason": "slice_drift"}
        eventually(lambda: gateway.metric("ladder_steps_total", **routed) == 1)
        served = len(traffic.answered)
        eventually(lambda: len(traffic.answered) > served + 60)
    assert set(traffic.statuses) == set(pinned.statuses) == {200}
    assert traffic.num_cut == 0
    assert set(pinned.variants) == {"int8"}
    after = Counter(traffic.answered[served + 4 :])
    assert after[code, "int8"] > 5
    assert after[code, "int4"] > 2
    assert after[prose, "int4"] > 10
    assert after[prose, "int8"] == 0
    assert ladder(gateway)["routes"] == {CODE: "int8"}
    (event,) = told(gateway, "ladder_step")
    assert (event["act"], event["slices"], event["result"]) == ("route_slices", [CODE], "done")
    assert [each["slice"] for each in event["evidence"]] == [CODE]
    gateway.process.kill()
    # The slice is pinned no longer, so after the cool-down it goes where all others go.
    gateway = start_gateway(**with_routes(tmp_path / "ledger"), launch=BROKEN)
    with Traffic(gateway, [code], clients=4, stream=True) as traffic:
        eventually(lambda: gateway.metric("ladder_steps_total", reason="restored") == 1)
        given_back = {"from": "int8", "to": "int4", "reason": "slice_ok"}
        eventually(lambda: gateway.metric("ladder_steps_total", **given_back) == 1)
        states = {"model": "tiny", "variant": "int8", "state": "stopped"}
        eventually(lambda: gateway.metric("model_state", **states) == 1)
        served = len(traffic.variants) + 4
        eventually(lambda: len(traffic.variants) > served + 20)
    assert set(traffic.statuses) == {200}
    assert set(traffic.variants[served:]) == {"int4"}
    assert traffic.num_cut == 0


def test_a_killed_gateway_goes_on_where_it_was(start_gateway: StartGateway, tmp_path: Path) -> None:
    """After SIGKILL int8 serves from the first request on, until the ladder is switched off."""
    fields = settings()
    fields["shadow"]["ledger"] = {"path": str(tmp_path / "ledger")}
    gateway = start_gateway(**fields, launch=BROKEN)
    with Traffic(gateway):
        eventually(lambda: active(gateway) == "int8")
    gateway.process.kill()
    gateway = start_gateway(**fields, launch=BROKEN)
    with Traffic(gateway) as traffic:
        eventually(lambda: len(traffic.variants) > 5)
    assert set(traffic.variants) == {"int8"}
    (event,) = told(gateway, "ladder_step")
    assert (event["act"], event["from"], event["to"]) == ("restore", "int4", "int8")
    assert "int4: all drifts" in event["reason"]
    gateway.process.kill()
    fields["shadow"]["ladder"] |= {"mode": "off"}
    gateway = start_gateway(ready=False, **fields, launch=BROKEN)
    assert active(gateway) == "int4"
    with closing(sqlite3.connect(tmp_path / "ledger")) as ledger:
        assert ledger.execute("SELECT * FROM ladders").fetchall() == []


def test_what_is_known_is_told(start_gateway: StartGateway) -> None:
    """Verdicts by slice, the promise, the floor and the ledger's figures; a window is checked."""
    fields = settings("off")
    fields["shadow"] |= {"floor_every": 2}
    gateway = start_gateway(**fields)
    for _ in range(4):
        gateway.http.post(CHAT, json=body(fake={"tokens": 2}))
    found = eventually(lambda: _with_floor(gateway))
    assert "at most one false alarm per 100,000 scored requests" in found["promise"]
    of = {each["variant"]: each for each in found["data"]}
    assert (of["int4"]["active"], of["int4"]["verdict"]) == (True, "learning")
    whole = next(each for each in of["int4"]["slices"] if each["slice"] == "all")
    assert whole["n"] == of["int4"]["scored"] == 4
    assert whole["tolerance"] == 0.02
    assert of["int8"]["verdict"] is None
    assert found["ladders"] == {}
    assert found["noise_floor"]["tiny"]["mean"] == 0
    kept = {(each["variant"], each["slice"]): each for each in found["ledger"]["slices"]}
    assert kept["int4", "all"]["num_requests"] == 4
    assert kept["full", "all"]["num_requests"] == 2
    refused = gateway.http.get("/admin/fidelity?window_s=-1")
    assert refused.status_code == 400
    assert "'window_s' is '-1': give seconds above 0" in refused.text


def _with_floor(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.http.get("/admin/fidelity?window_s=3600").json()
    floor = found["noise_floor"].get("tiny", {})
    is_scored = any(each["scored"] == 4 and each["slices"][0]["n"] == 4 for each in found["data"])
    return found if is_scored and floor.get("num_requests") == 2 else {}
