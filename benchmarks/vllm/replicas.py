"""One engine on one core against two engines on one core each."""

import asyncio
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gateway.load import Outcomes, run_streams
from benchmarks.gateway.ways import settle
from benchmarks.vllm.engines import ALIAS, MORE, RECIPE, STREAMS, in_front_of, served

TOKENS = 64


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return throughputs of one and two engines that are held to a core each, in turns.

    One engine is asked through a gateway of its own; at last it is let go of, and its servers take
    the other's core. Of the cores used, ``servers`` are vLLM's API servers and cores.
    """
    with (
        served(directory, replicas=2, threads=1) as gateway,
        in_front_of(gateway.replicas()[0]["url"], directory) as before_one,
    ):
        first, second = (each["url"] for each in gateway.replicas())
        loads = {
            "one": ({before_one: STREAMS}, ALIAS),
            "two": ({gateway.url: 2 * STREAMS}, ALIAS),
            "shared": ({gateway.url: STREAMS}, ALIAS),
            "direct_one": ({first: STREAMS}, f"{ALIAS}@{RECIPE}"),
            "direct_two": ({first: STREAMS, second: STREAMS}, f"{ALIAS}@{RECIPE}"),
        }
        asyncio.run(_run(*loads["two"], tokens=8))
        rounds, cores = [], []
        for _ in range(turns):
            used, since = gateway.processor_s(), time.perf_counter()
            rounds.append({"two": _speed(*loads["two"])})
            cores.append(_cores(used, gateway.processor_s(), time.perf_counter() - since))
            rounds[-1] |= {name: _speed(*load) for name, load in loads.items() if name != "two"}
        gateway.let_go_of(first)
        free = [_speed(*loads["one"]) for _ in range(turns)]
    found = {name: statistics.median(each[name] for each in rounds) for name in loads}
    return {
        "streams_of_each_engine": STREAMS,
        "turns": turns,
        "one_tokens_per_s": found["one"],
        "two_tokens_per_s": found["two"],
        "times": statistics.median(each["two"] / each["one"] for each in rounds),
        "times_of_each_turn": [round(each["two"] / each["one"], 2) for each in rounds],
        "one_asked_directly_tokens_per_s": found["direct_one"],
        "two_asked_directly_tokens_per_s": found["direct_two"],
        "times_asked_directly": statistics.median(
            each["direct_two"] / each["direct_one"] for each in rounds
        ),
        "two_sharing_the_streams_of_one_tokens_per_s": found["shared"],
        "one_let_go_of_tokens_per_s": statistics.median(free),
        "two_cores_used_in_each_turn": cores,
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
