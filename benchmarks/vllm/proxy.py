"""Sixteen streams through the gateway and directly to the same vLLM, in turns and side by side."""

import asyncio
import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.gateway.load import Outcomes, ask, run_streams
from benchmarks.gateway.ways import settle
from benchmarks.vllm.engines import ALIAS, MORE, RECIPE, STREAMS, served

TOKENS = 64
BESIDE_TOKENS = 12
BESIDE_PAIRS = 60
"""Of each client, which sends one request each way at the same moment."""
BESIDE_PAUSE_S = 0.4
"""At most, before a pair: answers of one length would else end and begin in one step."""
RESAMPLES = 2000


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return medians over the turns and of the pairs, and the times of both ways in one company.

    From turn to turn, and from step to step of the engine, the first token varies by more than a
    gateway adds, so that time is taken from pairs of requests that are sent at the same moment,
    one each way, and that the engine reads in the same step if nothing holds one up.
    """
    with served(directory, replicas=1) as gateway:
        (replica,) = gateway.replicas()
        ways = {"direct": (replica["url"], f"{ALIAS}@{RECIPE}"), "gateway": (gateway.url, ALIAS)}
        for url, name in ways.values():
            asyncio.run(_run(url, name, tokens=8))
        rounds = [
            {way: asyncio.run(_run(*ways[way], tokens=TOKENS)) for way in _order(ways, turn)}
            for turn in range(turns)
        ]
        beside = asyncio.run(_beside(ways))
    speeds = {way: [_speed(each[way]) for each in rounds] for way in ways}
    firsts = {way: [each[way].first_ms(0.5) for each in rounds] for way in ways}
    pairs = list(zip(speeds["gateway"], speeds["direct"], strict=True))
    added = [a - b for a, b in zip(firsts["gateway"], firsts["direct"], strict=True)]
    more = [through - direct for direct, through in beside]
    return {
        "streams": STREAMS,
        "turns": turns,
        "direct_tokens_per_s": statistics.median(speeds["direct"]),
        "gateway_tokens_per_s": statistics.median(speeds["gateway"]),
        "share_of_direct": statistics.median(a / b for a, b in pairs),
        "direct_first_p50_ms": statistics.median(firsts["direct"]),
        "gateway_first_p50_ms": statistics.median(firsts["gateway"]),
        "added_first_p50_ms": statistics.median(added),
        "added_first_ms_of_each_turn": [round(each, 1) for each in added],
        "beside_pairs": len(beside),
        "beside_direct_first_p50_ms": statistics.median(direct for direct, _ in beside),
        "beside_gateway_first_p50_ms": statistics.median(through for _, through in beside),
        "beside_added_first_p50_ms": statistics.median(more),
        "beside_added_first_p50_ms_from_to": _interval(more, statistics.median),
        "beside_added_first_mean_ms": statistics.fmean(more),
        "beside_added_first_mean_ms_from_to": _interval(more, statistics.fmean),
        "failed": sum(len(each[way].all) - len(each[way].whole) for each in rounds for way in ways),
    }


def _order(ways: Iterable[str], turn: int) -> list[str]:
    """Return the ways, each first in every other turn."""
    return sorted(ways, reverse=bool(turn % 2))


async def _run(url: str, name: str, *, tokens: int) -> Outcomes:
    found = await run_streams(url, name, streams=STREAMS, rounds=2, tokens=tokens, more=MORE)
    await settle()
    return found


def _speed(outcomes: Outcomes) -> float:
    return outcomes.tokens / outcomes.seconds


async def _beside(ways: Mapping[str, tuple[str, str]]) -> list[tuple[float, float]]:
    """Return the times to the first token, ms, of pairs: directly and through the gateway.

    Half as many clients as streams send them, so that as many streams run.
    """
    found: list[tuple[float, float]] = []

    async def first_ms(way: str) -> float:
        outcome = await ask(*ways[way], max_tokens=BESIDE_TOKENS, more=MORE)
        if outcome.first_s is None:
            raise RuntimeError(f"a request by the way {way!r} failed")
        return 1e3 * outcome.first_s

    async def client(number: int) -> None:
        draw = random.Random(number)
        for _ in range(BESIDE_PAIRS):
            await asyncio.sleep(draw.uniform(0, BESIDE_PAUSE_S))
            order = draw.sample(sorted(ways), len(ways))
            times = await asyncio.gather(*(first_ms(way) for way in order))
            taken = dict(zip(order, times, strict=True))
            found.append((taken["direct"], taken["gateway"]))

    await asyncio.gather(*(client(number) for number in range(STREAMS // len(ways))))
    return found


def _interval(
    values: Sequence[float], summary: Callable[[Sequence[float]], float]
) -> tuple[float, float]:
    """Return between what a summary of the pairs lies with 95 %, by resampling."""
    draw = random.Random(0)
    found = sorted(summary(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return round(found[int(0.025 * RESAMPLES)], 1), round(found[int(0.975 * RESAMPLES)], 1)
