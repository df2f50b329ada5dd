"""Sixteen streams through the gateway and directly to the same vLLM, in turns and side by side."""

import asyncio
import random
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.gateway.load import Outcomes, ask, run_streams
from benchmarks.gateway.ways import settle
from benchmarks.vllm.engines import ALIAS, MORE, RECIPE, STREAMS, served

TOKENS = 64
BESIDE_TOKENS = 12
BESIDE_REQUESTS = 40
"""Of each stream, half of them each way."""
BESIDE_PAUSE_S = 0.4
"""At most, before a request: answers of one length would else end and begin in one step."""
RESAMPLES = 2000


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return medians over the turns and of the pairs, and the times of both ways in one company.

    From turn to turn the first token varies by more than a gateway adds, so that time is taken
    where the same engine answers requests of both ways in the same steps.
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
    low, high = _interval(beside["gateway"], beside["direct"])
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
        "beside_requests_each_way": len(beside["direct"]),
        "beside_direct_first_p50_ms": statistics.median(beside["direct"]),
        "beside_gateway_first_p50_ms": statistics.median(beside["gateway"]),
        "beside_added_first_p50_ms": _added(beside["gateway"], beside["direct"]),
        "beside_added_first_p50_ms_from_to": [round(low, 1), round(high, 1)],
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


async def _beside(ways: Mapping[str, tuple[str, str]]) -> dict[str, list[float]]:
    """Return the times to the first token, ms, of streams that take both ways by turns."""
    found: dict[str, list[float]] = {way: [] for way in ways}

    async def client(number: int) -> None:
        draw = random.Random(number)
        for _ in range(BESIDE_REQUESTS // len(ways)):
            for way in draw.sample(sorted(ways), len(ways)):
                await asyncio.sleep(draw.uniform(0, BESIDE_PAUSE_S))
                outcome = await ask(*ways[way], max_tokens=BESIDE_TOKENS, more=MORE)
                if outcome.first_s is None:
                    raise RuntimeError(f"a request by the way {way!r} failed")
                found[way].append(1e3 * outcome.first_s)

    await asyncio.gather(*(client(number) for number in range(STREAMS)))
    return found


def _added(through: list[float], direct: list[float]) -> float:
    return statistics.median(through) - statistics.median(direct)


def _interval(through: list[float], direct: list[float]) -> tuple[float, float]:
    """Return between what the difference of the medians lies with 95 %, by resampling."""
    draw = random.Random(0)
    found = sorted(
        _added(draw.choices(through, k=len(through)), draw.choices(direct, k=len(direct)))
        for _ in range(RESAMPLES)
    )
    return found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES)]
