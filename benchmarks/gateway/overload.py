"""Ten times as many clients as may run: who is refused is told at once, the others feel little."""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from benchmarks.gateway.load import Outcome, ask, run_streams
from benchmarks.gateway.scripted_engine import NAME
from benchmarks.gateway.ways import Way, narrowgate, scripted_engine

CAPACITY = 16
FACTOR = 10
TOKENS = 20
PACE_MS = 20.0
_AFTER_REFUSAL_S = 0.2
"""What a client waits before it asks again; shorter than any Retry-After, on purpose."""


def measure(directory: Path, seconds: float) -> dict[str, object]:
    """Return what refusals cost, and the goodput against that at capacity."""
    with ExitStack() as stack:
        engine = stack.enter_context(scripted_engine(PACE_MS))
        model = {"model": NAME, "urls": [engine], "max_running": CAPACITY, "max_queued": CAPACITY}
        way = stack.enter_context(narrowgate({"models": {NAME: model}}, directory))
        return asyncio.run(_measure(way, seconds))


async def _measure(way: Way, seconds: float) -> dict[str, object]:
    rounds = max(1, round(seconds / 2 / (TOKENS * PACE_MS / 1e3)))
    peak = await run_streams(way.url, NAME, streams=CAPACITY, rounds=rounds, tokens=TOKENS)
    before_mb = way.resident_mb()
    outcomes, lasted_s = await _overload(way, seconds)
    refused = [each for each in outcomes if each.status in {429, 503}]
    whole = [each for each in outcomes if each.is_whole]
    late = sorted(1e3 * each.total_s for each in refused)
    goodput = sum(each.tokens for each in whole) / lasted_s
    at_capacity = peak.tokens / peak.seconds
    return {
        "clients": CAPACITY * FACTOR,
        "seconds": round(lasted_s, 1),
        "statuses": dict(Counter(str(each.status) for each in outcomes)),
        "broken": sum(each.status == 200 and not each.is_whole for each in outcomes),
        "refusal_p50_ms": late[len(late) // 2] if late else None,
        "refusal_p99_ms": late[int(0.99 * len(late))] if late else None,
        "refusal_max_ms": late[-1] if late else None,
        "tokens_per_s_at_capacity": at_capacity,
        "tokens_per_s_overloaded": goodput,
        "goodput_share": goodput / at_capacity,
        "gateway_mb_before": before_mb,
        "gateway_mb_after": way.resident_mb(),
    }


async def _overload(way: Way, seconds: float) -> tuple[list[Outcome], float]:
    outcomes: list[Outcome] = []
    until = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < until:
            outcome = await ask(way.url, NAME, max_tokens=TOKENS)
            outcomes.append(outcome)
            if not outcome.is_whole:
                await asyncio.sleep(_AFTER_REFUSAL_S)

    started = time.monotonic()
    await asyncio.gather(*(client() for _ in range(CAPACITY * FACTOR)))
    return outcomes, time.monotonic() - started
