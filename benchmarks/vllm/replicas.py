"""One engine on one processor against two engines on one each; and what the death of one costs."""

import asyncio
import statistics
import time
from pathlib import Path

from benchmarks.gateway.load import Outcome, Outcomes, ask, run_streams
from benchmarks.gateway.ways import settle
from benchmarks.vllm.engines import ALIAS, MORE, STREAMS, Served, served

TOKENS = 64
LOSS_TOKENS = 128
KILL_AFTER_S = 1.5
RETURN_LIMIT_S = 240.0


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return throughputs of one and two engines, and the outcome of a kill under load."""
    speeds: dict[int, list[float]] = {}
    for count in (1, 2):
        with served(directory, replicas=count, threads=1) as gateway:
            asyncio.run(_run(gateway, tokens=8))
            runs = [asyncio.run(_run(gateway, tokens=TOKENS)) for _ in range(turns)]
            speeds[count] = [each.tokens / each.seconds for each in runs]
            if count == 2:
                loss = asyncio.run(_lose_one(gateway))
    one, two = (statistics.median(speeds[count]) for count in (1, 2))
    return {
        "streams": STREAMS,
        "one_tokens_per_s": one,
        "two_tokens_per_s": two,
        "times": two / one,
        **loss,
    }


async def _run(gateway: Served, *, tokens: int) -> Outcomes:
    found = await run_streams(
        gateway.url, ALIAS, streams=STREAMS, rounds=2, tokens=tokens, more=MORE
    )
    await settle()
    return found


async def _lose_one(gateway: Served) -> dict[str, object]:
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
    cut = [each for each in outcomes if not each.is_whole]
    return {
        "requests_during_a_kill": len(outcomes),
        "lost_before_their_first_byte": sum(each.first_s is None for each in cut),
        "cut_in_the_middle": sum(each.first_s is not None for each in cut),
        "cut_and_told_by_an_error_event": sum(
            each.is_told for each in cut if each.first_s is not None
        ),
        "back_in_rotation_after_s": time.monotonic() - killed,
    }
