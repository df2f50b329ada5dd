"""Clients that leave at random moments: the engine stops soon, and hardly a token is wasted."""

import asyncio
import random
import time
from dataclasses import dataclass

from tests.gateway.bare_client import BareClient
from tests.gateway.harness import Gateway, body, eventually

NUM_CLIENTS = 100
PACE_S = 0.02
STOPS_WITHIN_S = 0.25
ARRIVALS_S = 2.0


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


def test_the_engine_stops_whenever_a_client_leaves(gateway: Gateway) -> None:
    """Before the first byte, before the first token, while decoding; plain, streamed, FIN, RST."""
    choose = random.Random(11)
    visits = [
        Visit(number, choose.uniform(0, 0.5), choose.choice((0, 0.2)), choose.choice((0, 0, 0.2)))
        for number in range(NUM_CLIENTS)
    ]
    aborts = gateway.metric("requests_total", outcome="client_abort")
    total, counted = gateway.metric("requests_total"), gateway.metric("generated_tokens_total")
    left = asyncio.run(come_and_leave(gateway.port, visits, 4000, ARRIVALS_S))
    eventually(lambda: gateway.metric("requests_total") == total + NUM_CLIENTS)
    eventually(lambda: gateway.engine_state()["running"] == 0)
    assert gateway.metric("requests_total", outcome="client_abort") == aborts + NUM_CLIENTS
    assert gateway.metric("requests_running") == 0

    times = gateway.engine_times()
    wasted: list[int] = []
    for label, (moment, _) in left.items():
        if label in times:  # who leaves before its request is read never gets there
            assert times[label]["ended"] - moment < STOPS_WITHIN_S
            wasted.append(sum(each > moment for each in times[label]["tokens"]))
    assert len(wasted) > 0.8 * NUM_CLIENTS
    assert sum(wasted) <= NUM_CLIENTS
    assert sum(each <= 1 for each in wasted) > 0.9 * len(wasted)

    streams = [visit.label for visit in visits if visit.is_stream]
    seen = sum(left[label][1] for label in streams)
    decoded = sum(len(times[label]["tokens"]) for label in streams if label in times)
    counted = gateway.metric("generated_tokens_total") - counted
    assert 100 < seen <= counted <= decoded <= seen + len(streams)


def test_leaving_around_the_last_token(gateway: Gateway) -> None:
    """Each is counted once, as whole or as left, and nothing goes on."""
    choose = random.Random(12)
    visits = [Visit(number, choose.uniform(0.05, 0.15), 0, 0) for number in range(40)]
    total = gateway.metric("requests_total")
    ends = [gateway.metric("requests_total", outcome=each) for each in ("ok", "client_abort")]
    asyncio.run(come_and_leave(gateway.port, visits, 4, 0.5))
    eventually(lambda: gateway.metric("requests_total") == total + len(visits))
    now = [gateway.metric("requests_total", outcome=each) for each in ("ok", "client_abort")]
    assert sum(now) - sum(ends) == len(visits)
    assert now[0] > ends[0]
    assert now[1] > ends[1]
    assert gateway.metric("requests_running") == 0
    assert gateway.engine_state()["running"] == 0
