"""Ten times as many clients as may run: who is refused is told at once, the others feel little."""

import asyncio
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import uvloop

from benchmarks.gateway.load import Outcome, ask, run_streams
from benchmarks.gateway.scripted_engine import NAME
from benchmarks.gateway.ways import Way, narrowgate, scripted_engine

CAPACITY = 16
FACTOR = 10
TOKENS = 20
PACE_MS = 20.0
_AFTER_REFUSAL_S = 0.2
"""What a client waits before it asks again; shorter than any Retry-After, on purpose."""
_TICK_S = 0.005


def measure(directory: Path, seconds: float) -> dict[str, object]:
    """Return what refusals cost, and the goodput against that at capacity."""
    with ExitStack() as stack:
        engine = stack.enter_context(scripted_engine(PACE_MS))
        model = {"model": NAME, "urls": [engine], "max_running": CAPACITY, "max_queued": CAPACITY}
        way = stack.enter_context(narrowgate({"models": {NAME: model}}, directory))
        return uvloop.run(_measure(way, seconds))  # the clients share the processors with it


async def _measure(way: Way, seconds: float) -> dict[str, object]:
    rounds = max(1, round(seconds / 2 / (TOKENS * PACE_MS / 1e3)))
    peak = await run_streams(way.url, NAME, streams=CAPACITY, rounds=rounds, tokens=TOKENS)
    before_mb = way.resident_mb()
    stalls_ms: list[float] = []
    watching = asyncio.create_task(_watch_stalls(stalls_ms))
    outcomes, lasted_s = await _overload(way, seconds)
    watching.cancel()
    refused = [each for each in outcomes if each.status in {429, 503}]
    whole = [each for each in outcomes if each.is_whole]
    late = sorted(1e3 * each.total_s for each in refused)
    after_sent = sorted(1e3 * (each.total_s - each.sent_s) for each in refused)
    goodput = sum(each.tokens for each in whole) / lasted_s
    at_capacity = peak.tokens / peak.seconds
    return {
        "clients": CAPACITY * FACTOR,
        "seconds": round(lasted_s, 1),
        "statuses": dict(Counter(str(each.status) for each in outcomes)),
        "broken": sum(each.status == 200 and not each.is_whole for each in outcomes),
        "refusal_p50_ms": _quantile(late, 0.5),
        "refusal_p99_ms": _quantile(late, 0.99),
        "refusal_max_ms": _quantile(late, 1),
        "refusal_after_sent_p50_ms": _quantile(after_sent, 0.5),
        "refusal_after_sent_p99_ms": _quantile(after_sent, 0.99),
        "refusal_after_sent_max_ms": _quantile(after_sent, 1),
        "clients_stalled_max_ms": max(stalls_ms),
        "tokens_per_s_at_capacity": at_capacity,
        "tokens_per_s_overloaded": goodput,
        "goodput_share": goodput / at_capacity,
        "gateway_mb_before": before_mb,
        "gateway_mb_after": way.resident_mb(),
    }


async def _watch_stalls(found: list[float]) -> None:
    """Note how much later than asked for the clients' own loop comes round, in milliseconds."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + _TICK_S
        await asyncio.sleep(_TICK_S)
        found.append(1e3 * (loop.time() - due))


def _quantile(sizes: list[float], share: float) -> float | None:
    """Return a quantile of sorted sizes; None if there are none."""
    return sizes[min(len(sizes) - 1, int(share * len(sizes)))] if sizes else None


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
