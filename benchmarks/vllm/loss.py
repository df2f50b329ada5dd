"""One of two engines is killed while all streams run: what is lost, and when it is back."""

import asyncio
import time
from pathlib import Path

from benchmarks.gateway.load import Outcome, ask
from benchmarks.vllm.engines import ALIAS, MORE, STREAMS, Served, served

LOSS_TOKENS = 128
KILL_AFTER_S = 1.5
RETURN_LIMIT_S = 240.0


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return the outcomes of all requests, and how long the engine was away, over all kills."""
    with served(directory, replicas=2, threads=1) as gateway:
        losses = [asyncio.run(_lose_one(gateway)) for _ in range(turns)]
    outcomes = [outcome for found, _ in losses for outcome in found]
    cut = [each for each in outcomes if not each.is_whole]
    begun = [each for each in cut if each.first_s is not None]
    return {
        "kills": turns,
        "requests_during_the_kills": len(outcomes),
        "lost_before_their_first_byte": len(cut) - len(begun),
        "cut_in_the_middle": len(begun),
        "cut_and_told_by_an_error_event": sum(each.is_told for each in begun),
        "back_in_rotation_after_s": [round(away_s, 1) for _, away_s in losses],
    }


async def _lose_one(gateway: Served) -> tuple[list[Outcome], float]:
    """Kill one engine's server while all streams run, and wait until it is back."""
    victim = gateway.server_of(gateway.replicas()[0]["url"])
    outcomes: list[Outcome] = []

    async def client(number: int) -> None:
        await asyncio.sleep(number * 0.05)
        asked = [ask(gateway.url, ALIAS, max_tokens=LOSS_TOKENS, more=MORE) for _ in range(2)]
        outcomes.extend([await each for each in asked])

    clients = asyncio.gather(*(client(number) for number in range(STREAMS)))
    await asyncio.sleep(KILL_AFTER_S)
    victim.kill()
    killed = time.monotonic()
    await clients
    while not all(each["state"] == "ready" for each in gateway.replicas()):
        if time.monotonic() - killed > RETURN_LIMIT_S:
            raise RuntimeError("the killed engine did not come back")
        await asyncio.sleep(0.5)
    return outcomes, time.monotonic() - killed
