"""One engine on one core against two engines on one core each."""

import asyncio
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gateway.load import Outcomes, run_streams
from benchmarks.gateway.ways import settle
from benchmarks.vllm.cores import scaling
from benchmarks.vllm.engines import ALIAS, MORE, RECIPE, STREAMS, Served, served

TOKENS = 64


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return throughputs of one and two engines, and what bounds them.

    Two engines have a core each for all their processes; one has both, then one core as well.
    """
    speeds: dict[str, list[float]] = {}
    cores: dict[str, dict[str, float]] = {}

    def through(gateway: Served, name: str, streams: int) -> None:
        load = {gateway.url: streams}
        asyncio.run(_run(load, ALIAS, tokens=8))
        before, since = gateway.processor_s(), time.perf_counter()
        speeds[name] = [_speed(load, ALIAS) for _ in range(turns)]
        cores[name] = _cores(before, gateway.processor_s(), time.perf_counter() - since)

    with served(directory, replicas=1, threads=1) as gateway:
        through(gateway, "free", STREAMS)
        gateway.hold_to_one_core()
        through(gateway, "one", STREAMS)
    with served(directory, replicas=2, threads=1) as gateway:
        through(gateway, "two", 2 * STREAMS)
        through(gateway, "shared", STREAMS)
        speeds |= _direct(gateway, turns)
    found = {name: statistics.median(each) for name, each in speeds.items()}
    return {
        "streams_of_each_engine": STREAMS,
        "turns": turns,
        "one_on_one_core_tokens_per_s": found["one"],
        "two_on_one_core_each_tokens_per_s": found["two"],
        "times": found["two"] / found["one"],
        "one_with_both_cores_tokens_per_s": found["free"],
        "times_of_one_with_both_cores": found["two"] / found["free"],
        "two_sharing_the_streams_of_one_tokens_per_s": found["shared"],
        "one_asked_directly_tokens_per_s": found["direct_one"],
        "two_asked_directly_tokens_per_s": found["direct_two"],
        "times_asked_directly": found["direct_two"] / found["direct_one"],
        "one_on_one_core_cores_used": cores["one"],
        "two_on_one_core_each_cores_used": cores["two"],
        "one_with_both_cores_cores_used": cores["free"],
        **scaling(),
    }


def _direct(gateway: Served, turns: int) -> dict[str, list[float]]:
    """Return tokens a second of one engine and of both, asked without the gateway."""
    first, second = (each["url"] for each in gateway.replicas())
    loads = {"one": {first: STREAMS}, "two": {first: STREAMS, second: STREAMS}}
    model = f"{ALIAS}@{RECIPE}"
    asyncio.run(_run(loads["two"], model, tokens=8))
    return {
        f"direct_{which}": [_speed(load, model) for _ in range(turns)]
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
