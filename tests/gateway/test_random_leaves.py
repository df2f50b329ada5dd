"""Clients that leave at random moments: the engine stops soon, and hardly a token is wasted.

Limits of time grow by one round trip, as slow as the slowest at the same time, so that they hold on
a busy machine too.
"""

import asyncio
import math
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from tests.gateway.bare_client import BareClient, ask
from tests.gateway.harness import Gateway, body, eventually

NUM_CLIENTS = 100
PACE_S = 0.02
STOPS_WITHIN_S = 0.25
ARRIVALS_S = 3.0


@dataclass(frozen=True)
class Visit:
    """One client: how it asks, and when and how it leaves; times in seconds."""

    number: int
    stays_s: float
    first_s: float
    head_s: float

    @property
    def is_stream(self) -> bool:
        """Return whether it asks for a stream."""
        return self.number % 2 == 0

    @property
    def with_reset(self) -> bool:
        """Return whether it leaves with a reset."""
        return self.number % 4 >= 2

    @property
    def label(self) -> str:
        """Return its name at the engine."""
        return f"leave {self.number}"

    async def run(self, port: int, num_tokens: int) -> tuple[float, int]:
        """Ask, read, and leave; return when that was, and how many tokens had come."""
        fake = {
            "tokens": num_tokens,
            "pace_s": PACE_S,
            "first_s": self.first_s,
            "head_s": self.head_s,
            "label": self.label,
        }
        client = await BareClient.send(port, body(stream=self.is_stream, fake=fake))
        reading = asyncio.ensure_future(client.read())
        await asyncio.wait({reading}, timeout=self.stays_s)
        client.leave(with_reset=self.with_reset)
        left = time.monotonic()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        return left, len(client.reply.token_times)


async def come_and_leave(
    port: int, visits: list[Visit], num_tokens: int, spread_s: float
) -> dict[str, tuple[float, int]]:
    """Let the clients come one after the other; return what became of each, by label."""

    async def run(visit: Visit) -> tuple[float, int]:
        await asyncio.sleep(spread_s * visit.number / len(visits))
        return await visit.run(port, num_tokens)

    async with asyncio.timeout(60):
        results = await asyncio.gather(*(run(visit) for visit in visits))
    return {visit.label: result for visit, result in zip(visits, results, strict=True)}


async def with_round_trips(
    port: int, coming: Coroutine[Any, Any, dict[str, tuple[float, int]]]
) -> tuple[dict[str, tuple[float, int]], list[float]]:
    """Let the clients come, and time short requests meanwhile: how busy the machine is."""
    task = asyncio.ensure_future(coming)
    round_trips: list[float] = []
    while not task.done():
        round_trips.append((await ask(port, body(fake={"tokens": 1}))).duration_s)
        await asyncio.sleep(0.1)
    return task.result(), round_trips


@pytest.mark.alone
def test_the_engine_stops_whenever_a_client_leaves(gateway: Gateway) -> None:
    """Before the first byte, before the first token, while decoding; plain, streamed, FIN, RST."""
    choose = random.Random(11)
    visits = [
        Visit(number, choose.uniform(0, 0.5), choose.choice((0, 0.2)), choose.choice((0, 0, 0.2)))
        for number in range(NUM_CLIENTS)
    ]
    aborts, counted = counters(gateway)
    left, round_trips = asyncio.run(
        with_round_trips(gateway.port, come_and_leave(gateway.port, visits, 4000, ARRIVALS_S))
    )
    eventually(lambda: counters(gateway)[0] == aborts + NUM_CLIENTS)
    eventually(lambda: gateway.engine_state()["running"] == 0)
    assert gateway.metric("requests_running") == 0

    times = gateway.engine_times()
    reached = {label: moment for label, (moment, _) in left.items() if label in times}
    assert len(reached) > 0.8 * NUM_CLIENTS  # the others left before their request was read
    stops = {label: times[label]["ended"] - moment for label, moment in reached.items()}
    assert max(stops.values()) < STOPS_WITHIN_S + max(round_trips)
    wasted = [sum(each > reached[label] for each in times[label]["tokens"]) for label in reached]
    assert max(wasted) <= 1 + math.ceil(max(round_trips) / PACE_S)
    assert sum(wasted) <= len(wasted)

    streams = [visit.label for visit in visits if visit.is_stream]
    seen = sum(left[label][1] for label in streams)
    decoded = sum(len(times[label]["tokens"]) for label in streams if label in times)
    counted = counters(gateway)[1] - counted - len(round_trips)
    assert 100 < seen <= counted <= decoded <= seen + len(streams)


def counters(gateway: Gateway) -> tuple[float, float]:
    """Return how many clients have left, and how many tokens were counted."""
    left = gateway.metric("requests_total", outcome="client_abort")
    return left, gateway.metric("generated_tokens_total")


def test_leaving_around_the_last_token(gateway: Gateway) -> None:
    """Each is counted once, as whole or as left, and nothing goes on."""
    choose = random.Random(12)
    visits = [Visit(number, choose.uniform(0.05, 0.3), 0, 0) for number in range(40)]
    # However slow the machine is, these get all, and those nothing.
    visits += [Visit(number, 30, 0, 0) for number in (40, 41)]
    visits += [Visit(number, 0.1, 60, 0) for number in (42, 43)]
    total = gateway.metric("requests_total")
    ends = [gateway.metric("requests_total", outcome=each) for each in ("ok", "client_abort")]
    asyncio.run(come_and_leave(gateway.port, visits, 4, 0.5))
    eventually(lambda: gateway.metric("requests_total") == total + len(visits))
    now = [gateway.metric("requests_total", outcome=each) for each in ("ok", "client_abort")]
    assert sum(now) - sum(ends) == len(visits)
    assert now[0] > ends[0]
    assert now[1] > ends[1]
    eventually(lambda: gateway.metric("requests_running") == 0)
    eventually(lambda: gateway.engine_state()["running"] == 0)
