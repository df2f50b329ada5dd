"""Sixteen streams through the gateway and directly to the same vLLM, in turns."""

import asyncio
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.gateway.load import Outcomes, run_streams
from benchmarks.gateway.ways import settle
from benchmarks.vllm.engines import ALIAS, MORE, RECIPE, STREAMS, served

TOKENS = 64


def measure(directory: Path, turns: int) -> dict[str, object]:
    """Return medians over the turns, and of the pairs."""
    with served(directory, replicas=1) as gateway:
        (replica,) = gateway.replicas()
        ways = {"direct": (replica["url"], f"{ALIAS}@{RECIPE}"), "gateway": (gateway.url, ALIAS)}
        for url, name in ways.values():
            asyncio.run(_run(url, name, tokens=8))
        rounds = [
            {way: asyncio.run(_run(*ways[way], tokens=TOKENS)) for way in _order(ways, turn)}
            for turn in range(turns)
        ]
    speeds = {way: [_speed(each[way]) for each in rounds] for way in ways}
    firsts = {way: [each[way].first_ms(0.5) for each in rounds] for way in ways}
    pairs = list(zip(speeds["gateway"], speeds["direct"], strict=True))
    added = [a - b for a, b in zip(firsts["gateway"], firsts["direct"], strict=True)]
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
