"""One engine on one processor against two engines on one each; and what the death of one costs."""

import asyncio
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gateway.load import Outcome, Outcomes, ask, run_streams
from benchmarks.gateway.ways import settle
from benchmarks.vllm.cores import scaling
from benchmarks.vllm.engines import ALIAS, MORE, RECIPE, STREAMS, Served, served

TOKENS = 64
LOSS_TOKENS = 128
KILL_AFTER_S = 1.5
RETURN_LIMIT_S = 240.0


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return throughputs of one and two engines, what bounds them, and the outcome of a kill."""
    speeds: dict[str, list[float]] = {}
    cores: dict[str, dict[str, float]] = {}
    for count, name in ((1, "one"), (2, "two")):
        with served(directory, replicas=count, threads=1) as gateway:
            through = {gateway.url: count * STREAMS}
            asyncio.run(_run(through, ALIAS, tokens=8))
            before, since = gateway.processor_s(), time.perf_counter()
            speeds[name] = [_speed(through, ALIAS) for _ in range(turns)]
            cores[name] = _cores(before, gateway.processor_s(), time.perf_counter() - since)
            if count == 2:
                speeds["shared"] = [_speed({gateway.url: STREAMS}, ALIAS) for _ in range(turns)]
                speeds |= _direct(gateway, turns, "direct")
                gateway.hold_to_a_core_each()
                speeds |= _direct(gateway, turns, "held")
                loss = asyncio.run(_lose_one(gateway))
    found = {name: statistics.median(each) for name, each in speeds.items()}
    return {
        "streams_of_each_engine": STREAMS,
        "one_tokens_per_s": found["one"],
        "two_tokens_per_s": found["two"],
        "times": found["two"] / found["one"],
        "two_sharing_the_streams_of_one_tokens_per_s": found["shared"],
        "one_cores_used": cores["one"],
        "two_cores_used": cores["two"],
        "one_asked_directly_tokens_per_s": found["direct_one"],
        "two_asked_directly_tokens_per_s": found["direct_two"],
        "times_asked_directly": found["direct_two"] / found["direct_one"],
        "one_held_to_its_core_tokens_per_s": found["held_one"],
        "two_held_to_their_cores_tokens_per_s": found["held_two"],
        "times_held_to_their_cores": found["held_two"] / found["held_one"],
        **scaling(),
        **loss,
    }


def _direct(gateway: Served, turns: int, name: str) -> dict[str, list[float]]:
    """Return tokens a second of one engine and of both, asked without the gateway."""
    first, second = (each["url"] for each in gateway.replicas())
    loads = {"one": {first: STREAMS}, "two": {first: STREAMS, second: STREAMS}}
    model = f"{ALIAS}@{RECIPE}"
    asyncio.run(_run(loads["two"], model, tokens=8))
    return {
        f"{name}_{which}": [_speed(load, model) for _ in range(turns)]
        for which, load in loads.items()
    }


def _speed(load: Mapping[str, int], model: str) -> float:
    """Return tokens a second of so many streams at each address, all together."""
    found = asyncio.run(_run(load, model, tokens=TOKENS))
    return sum(each.tokens for each in found) / max(each.seconds for each in found)


async def _run(load: Mapping[str, int], model: str, *, tokens: int) -> list[Outcomes]:
    found = await asyncio.gather(
        *(
            run_streams(url, model, streams=streams, rounds=2, tokens=tokens, more=MORE)
            for url, streams in load.items()
        )
    )
    await settle()
    return found


def _cores(
    before: Mapping[str, float], after: Mapping[str, float], seconds: float
) -> dict[str, float]:
    """Return how many cores each kind of process used."""
    return {name: round((after[name] - before[name]) / seconds, 2) for name in before}


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
