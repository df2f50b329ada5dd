"""A gateway under known traffic, watched by a real Prometheus; the truth is what clients saw."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx

from tests.gateway.bare_client import BareClient, Reply, ask
from tests.gateway.harness import Gateway, body, eventually
from tests.gateway.shadow.counts import counts
from tests.grafana.monitoring import Prometheus, prometheus

FAKE: dict[str, Any] = {"model": "fake"}
SETTINGS: dict[str, Any] = {
    "models": {
        "tiny": FAKE | {"ladder": ["int4", "full"]},
        "narrow": FAKE | {"ladder": ["int4", "int8"], "max_running": 1, "max_queued": 1},
        "frail": FAKE | {"recipe": "int4", "replicas": 2, "shadow": "off"},
        "brief": FAKE | {"recipe": "int4", "keep_alive_s": 1, "preload": False, "shadow": "off"},
    },
    "memory_budget": "2GiB",
    "shadow": {
        "rate": 1,
        "tokens_per_second": 2000,
        "floor_every": 2,
        "probe_every_s": 1,
        "max_running": 1000,
        "reference": {"mode": "resident", "memory": "1GiB"},
        "verdict": {"tolerance": {"all": 0.02}},
        "ladder": {"mode": "off"},
    },
}
LAUNCH: dict[str, Any] = {"nll": {"reference": 0.75}}
"""What the reference finds the tokens to cost that cost the engines 0.5."""

NUM_TOKENS = 12
NUM_PROMPT = 3
"""Words of the harness's question."""
PACE_S = 0.04
QUICK_S, LATE_S = 0.8, 2.0
"""Times to the first token: a dashboard's variable says that 1 s is in time."""
ROUNDS = 3
NUM_HELD, NUM_READ = 3, 3
KEY = {"authorization": "Bearer sk-test"}
ATTEMPTS, CALM_S = 3, 0.02
"""Where short requests take longer than this, others kept the clients from seeing in time."""


@dataclass
class Truth:
    """What the clients of the scene saw in the window; tokens and times are of ``tiny``."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By model, as it must be counted, and outcome."""
    streams: list[Reply] = field(default_factory=list)
    num_generated: int = 0
    num_prompt: int = 0

    def note(self, outcome: str, model: str = "tiny", count: int = 1) -> None:
        """Count requests."""
        self.outcomes[model, outcome] += count

    def answered(self, num_tokens: int) -> None:
        """Count an answer of ``tiny``."""
        self.note("ok")
        self.num_generated += num_tokens
        self.num_prompt += NUM_PROMPT

    def streamed(self, reply: Reply) -> None:
        """Keep a stream of ``tiny``."""
        self.streams.append(reply)

    def of(self, *outcomes: str, model: str | None = None) -> int:
        """Return how many requests ended so."""
        return sum(
            count
            for (who, outcome), count in self.outcomes.items()
            if outcome in outcomes and model in {None, who}
        )

    @property
    def first_token_s(self) -> list[float]:
        """Return the streams' times to their first token, in order."""
        return sorted(reply.token_times[0] - reply.began for reply in self.streams)

    @property
    def inter_token_s(self) -> list[float]:
        """Return the times between tokens."""
        return [
            later - sooner
            for reply in self.streams
            for sooner, later in pairwise(reply.token_times)
        ]


@dataclass(frozen=True)
class Scene:
    """The end of the traffic: what Prometheus has, what is true, and when."""

    prometheus: Prometheus
    truth: Truth
    began_at: float
    ended_at: float
    held_at: float
    """When exactly :data:`NUM_HELD` streams ran; all are times of Prometheus."""

    @property
    def window(self) -> str:
        """Return the time from the last scrape before the traffic to the one after it."""
        return f"{round((self.ended_at - self.began_at) * 1000) + 50}ms"


@contextmanager
def scene(directory: Path) -> Iterator[Scene]:
    """Run the traffic once and yield what became of it."""
    keys = directory / "keys.yaml"
    keys.write_text("keys: [{name: tester, key: sk-test, admin: true}]")
    gateway = Gateway(directory, SETTINGS | {"api_keys_file": str(keys)}, LAUNCH)
    gateway.http.headers.update(KEY)
    try:
        gateway.wait_ready()
        eventually(lambda: counts(gateway)["reference"]["state"] == "ready")
        # A counter begins to exist with its first event, which no rate can see: one of each now.
        asyncio.run(round_of(gateway, Truth()))
        eventually(lambda: _is_scored(gateway))
        with prometheus(directory, gateway.port) as found:
            for _ in range(ATTEMPTS):
                began_at = next_scrape(found, next_scrape(found, time.time()))
                truth, held_at, round_trip_s = asyncio.run(timed(gateway))
                eventually(lambda: _is_scored(gateway))
                ended_at = next_scrape(found, time.time())
                if round_trip_s < CALM_S:
                    break
            next_scrape(found, ended_at + 1)  # the rules have seen that one, too
            yield Scene(found, truth, began_at, ended_at, held_at)
    finally:
        gateway.close()


def next_scrape(found: Prometheus, after: float) -> float:
    """Wait for a scrape after a moment and return its time."""

    def look() -> float:
        samples = found.query("timestamp(up) and up == 1")
        at = float(samples[0]["value"][1]) if samples else 0.0
        return at if at > after else 0.0

    return eventually(look)


def _is_scored(gateway: Gateway) -> bool:
    return all(not counts(gateway, model)["in_flight"] for model in ("tiny", "narrow"))


async def timed(gateway: Gateway) -> tuple[Truth, float, float]:
    """Return what :func:`traffic` does, and how long a short request took meanwhile, on average."""
    round_trips: list[float] = []
    task = asyncio.ensure_future(traffic(gateway))
    async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
        while not task.done():
            started = time.perf_counter()
            await client.get("/health")
            round_trips.append(time.perf_counter() - started)
            await asyncio.sleep(0.05)
    return *task.result(), fmean(round_trips)


async def traffic(gateway: Gateway) -> tuple[Truth, float]:
    """Ask in rounds, then hold some streams open; return the truth, and when they were held."""
    truth = Truth()
    for _ in range(ROUNDS):
        await round_of(gateway, truth)
    held_at = await hold(gateway, truth)
    return truth, held_at


async def round_of(gateway: Gateway, truth: Truth) -> None:
    """Send a number of requests of every kind, and note how each must be counted.

    Streams come last: engines that start meanwhile would take the processors that clients, whose
    clocks are compared, need too.
    """
    await faults(gateway.port, truth)
    await crowds(gateway, truth)
    await asyncio.gather(streams(gateway.port, truth), plain(gateway.port, truth))


async def faults(port: int, truth: Truth) -> None:
    """Requests that fail, are refused, come too late, wake an engine, or are left by the client."""
    for request, model, outcome, status in (
        (body(fake={"fault": "crash"}) | {"model": "frail"}, "frail", "error", 503),
        (body(fake={"status": 500, "body": "{}"}), "tiny", "error", 502),
        (body() | {"model": "nobody"}, "_other", "rejected", 404),
        (body() | {"temperature": 9}, "_other", "rejected", 400),
        (body() | {"model": "brief"}, "brief", "ok", 200),
    ):
        reply = await ask(port, request, KEY)
        assert reply.status == status, reply.content
        truth.note(outcome, model)
    late = {"x-request-timeout-ms": "200"}
    reply = await ask(port, body(fake={"first_s": 2}), KEY | late)
    assert reply.status == 504, reply.content
    truth.note("timeout")
    client = await BareClient.send(port, body(stream=True, fake=pacing(QUICK_S)), KEY)
    reply = await client.read(num_tokens=NUM_READ)
    client.leave()
    truth.note("client_abort")
    truth.num_generated += NUM_READ
    truth.streamed(reply)


def pacing(first_s: float) -> dict[str, Any]:
    """Return the script of a stream."""
    return {"tokens": NUM_TOKENS, "pace_s": PACE_S, "first_s": first_s}


async def streams(port: int, truth: Truth) -> None:
    """Two quick streams and a late one of either variant, all of which report their usage."""
    wanted = {"stream_options": {"include_usage": True}}
    asked = [
        ask(port, body(stream=True, fake=pacing(first_s)) | wanted | {"model": name}, KEY)
        for first_s in (QUICK_S, QUICK_S, LATE_S)
        for name in ("tiny", "tiny@full")
    ]
    for reply in await asyncio.gather(*asked):
        assert len(reply.token_times) == NUM_TOKENS, reply.content
        truth.answered(NUM_TOKENS)
        truth.streamed(reply)


async def plain(port: int, truth: Truth) -> None:
    """Three whole answers."""
    for _ in range(3):
        reply = await ask(port, body(fake={"tokens": 7, "first_s": 0.1}), KEY)
        assert reply.status == 200, reply.content
        truth.answered(7)


async def crowds(gateway: Gateway, truth: Truth) -> None:
    """Three at once for a model that takes one and lets one wait, on both of its variants."""
    await crowd(gateway.port, truth)
    await asyncio.to_thread(swap, gateway)
    await crowd(gateway.port, truth)


async def crowd(port: int, truth: Truth) -> None:
    """One is answered, one waits for it, one is turned away."""
    request = body(fake={"tokens": 1, "first_s": 0.3}) | {"model": "narrow"}
    replies = await asyncio.gather(*(ask(port, request, KEY) for _ in range(3)))
    assert sorted(reply.status for reply in replies) == [200, 200, 503]
    truth.note("ok", "narrow", 2)
    truth.note("shed", "narrow")


def swap(gateway: Gateway) -> None:
    """Change the active variant of the narrow model."""
    found: list[Mapping[str, Any]] = gateway.http.get("/admin/models").json()["data"]
    rest = [each["id"] for each in found if each["model"] == "narrow" and not each["active"]]
    gateway.http.post(f"/admin/models/{rest[0]}/activate").raise_for_status()


async def hold(gateway: Gateway, truth: Truth) -> float:
    """Keep streams open for some scrapes; return a time in their midst."""
    script = {"tokens": NUM_TOKENS, "first_s": 0.1, "pace_s": 0.25}
    wanted = {"stream_options": {"include_usage": True}}
    asked = [
        asyncio.ensure_future(ask(gateway.port, body(stream=True, fake=script) | wanted, KEY))
        for _ in range(NUM_HELD)
    ]
    await asyncio.sleep(2.2)
    held_at = time.time()
    for reply in await asyncio.gather(*asked):
        truth.answered(NUM_TOKENS)
        truth.streamed(reply)
    return held_at
