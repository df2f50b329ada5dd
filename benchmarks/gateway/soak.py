"""Minutes of mixed traffic through the gateway; its memory must not lean upwards.

What is measured is resident memory, of which an allocator gives little back: a moment with more
requests at once than ever before leaves it larger, and is no leak. So the warm-up begins with three
times the clients.
"""

import asyncio
import random
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

from benchmarks.gateway.load import ask
from benchmarks.gateway.scripted_engine import NAME
from benchmarks.gateway.slope import Slope, slope_of
from benchmarks.gateway.ways import Way, narrowgate, scripted_engine
from gateway.live.sampler import KEPT_S

CLIENTS = 32
CLIENTS_AT_FIRST = 96
AT_FIRST_S = 60.0
SAMPLE_S = 5.0
WARM_UP_S = KEPT_S + 60.0
"""The rings of the last minutes fill first, and caches and pools; the slope is of what follows."""


def measure(directory: Path, minutes: float) -> dict[str, object]:
    """Return outcomes and the slope of the gateway's memory with its uncertainty.

    ``minutes`` are those that are measured; the warm-up comes before them.
    """
    with ExitStack() as stack:
        engine = stack.enter_context(scripted_engine(10.0))
        settings: dict[str, object] = {"models": {NAME: {"model": NAME, "urls": [engine]}}}
        way = stack.enter_context(narrowgate(settings, directory))
        outcomes, sizes = asyncio.run(_soak(way, WARM_UP_S + 60 * minutes))
    warm = [each for each in sizes if each[0] >= WARM_UP_S]
    slope: Slope = slope_of(warm)
    return {
        "warm_up_minutes": WARM_UP_S / 60,
        "minutes": minutes,
        "outcomes": dict(outcomes),
        "memory_mb_first": warm[0][1],
        "memory_mb_last": warm[-1][1],
        "memory_mb_by_minute": _by_minute(warm),
        "slope_mb_per_hour": 3600 * slope.value,
        "slope_low_mb_per_hour": 3600 * slope.low,
        "slope_high_mb_per_hour": 3600 * slope.high,
    }


async def _soak(way: Way, seconds: float) -> tuple[Counter[str], list[tuple[float, float]]]:
    outcomes: Counter[str] = Counter()
    sizes: list[tuple[float, float]] = []
    started = time.monotonic()

    async def client(number: int) -> None:
        choose = random.Random(number)
        until = seconds if number < CLIENTS else AT_FIRST_S
        while time.monotonic() - started < until:
            model = NAME if choose.random() < 0.95 else f"none-{choose.randrange(1 << 30)}"
            asking = asyncio.ensure_future(
                ask(way.url, model, max_tokens=choose.choice([1, 20, 200]))
            )
            if choose.random() < 0.2:
                await asyncio.sleep(choose.random())
                asking.cancel()
                outcomes["left"] += 1
                await asyncio.gather(asking, return_exceptions=True)
                continue
            outcome = await asking
            outcomes["whole" if outcome.is_whole else str(outcome.status)] += 1

    async def watch() -> None:
        while (now := time.monotonic() - started) < seconds:
            sizes.append((now, way.resident_mb()))
            await asyncio.sleep(SAMPLE_S)

    await asyncio.gather(watch(), *(client(number) for number in range(CLIENTS_AT_FIRST)))
    return outcomes, sizes


def _by_minute(sizes: list[tuple[float, float]]) -> list[float]:
    """Return the mean of each minute, so that a reader sees how it went."""
    minutes: dict[int, list[float]] = {}
    for seconds, size in sizes:
        minutes.setdefault(int((seconds - WARM_UP_S) // 60), []).append(size)
    return [round(mean(each), 3) for each in minutes.values()]
