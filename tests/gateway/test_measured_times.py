"""The times in the metrics are those that clients have: in sum within 5 %, and all of them."""

import asyncio
import math

import pytest

from tests.gateway.bare_client import Reply, ask
from tests.gateway.harness import Gateway, body, eventually

pytestmark = pytest.mark.alone

NUM_CLIENTS = 8
ROUNDS = 3
NUM_TOKENS = 20
FAKE = {"tokens": NUM_TOKENS, "pace_s": 0.02, "first_s": 0.2}
SHARE = 0.05
DURATION = "request_duration_seconds"
FIRST = "time_to_first_token_seconds"
INTER = "inter_token_latency_seconds"
NETWORK_S = 0.005
"""What a request may take on its way there and back, where the gateway does not see it."""


def count_and_sum(gateway: Gateway, name: str) -> tuple[float, float]:
    """Return the number and the sum of a histogram's values."""
    labels = {"model": "tiny"}
    return gateway.metric(f"{name}_count", **labels), gateway.metric(f"{name}_sum", **labels)


async def measure(port: int, *, stream: bool) -> tuple[list[Reply], float]:
    """Run all clients, and return what they have measured and the time that an error takes."""

    async def client() -> list[Reply]:
        return [await ask(port, body(stream=stream, fake=FAKE)) for _ in range(ROUNDS)]

    async def on_the_way() -> float:
        slowest_s = 0.0
        while not done.is_set():
            slowest_s = max(slowest_s, (await ask(port, {})).duration_s)
            await asyncio.sleep(0.05)
        return slowest_s

    done = asyncio.Event()
    watch = asyncio.ensure_future(on_the_way())
    found = await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))
    done.set()
    return [reply for replies in found for reply in replies], await watch


@pytest.mark.parametrize("stream", [True, False])
def test_histograms_are_what_clients_see(gateway: Gateway, stream: bool) -> None:
    """Durations, times to the first token and between tokens, against the clients' clocks.

    Counts always; times in one of three rounds, for the clients share a machine with others.
    """
    rounds = [compared(gateway, stream=stream)]
    while rounds[-1] and len(rounds) < 3:
        rounds.append(compared(gateway, stream=stream))
    assert not rounds[-1], rounds


def compared(gateway: Gateway, *, stream: bool) -> dict[str, tuple[float, float]]:
    """Return the sums that differ, as they are in the metrics and at the clients."""
    before = {name: count_and_sum(gateway, name) for name in (DURATION, FIRST, INTER)}
    replies, noise_s = asyncio.run(measure(gateway.port, stream=stream))
    num = NUM_CLIENTS * ROUNDS
    first = [reply.token_times[0] - reply.began for reply in replies if stream]
    inter = [reply.token_times[-1] - reply.token_times[0] for reply in replies if stream]
    seen = {
        DURATION: (num, math.fsum(reply.duration_s for reply in replies)),
        FIRST: (len(first), math.fsum(first)),
        INTER: (len(inter) * (NUM_TOKENS - 1), math.fsum(inter)),
    }
    eventually(lambda: count_and_sum(gateway, DURATION)[0] == before[DURATION][0] + num)
    wrong = {}
    for name in (DURATION, FIRST, INTER):
        now = count_and_sum(gateway, name)
        count, total = now[0] - before[name][0], now[1] - before[name][1]
        assert count == seen[name][0], name
        room_s = num * (NETWORK_S + noise_s) if count else 0
        if total != pytest.approx(seen[name][1], rel=SHARE, abs=room_s):
            wrong[name] = (total, seen[name][1])
    return wrong
