"""The active variant changes again and again under load, with real engines; nothing may fail."""

import asyncio
import time
from pathlib import Path
from statistics import median

import httpx

from benchmarks.gateway.load import Outcomes, ask
from benchmarks.gateway.ways import narrowgate

MODEL = "smollm2"
LADDER = ("int4-fast", "int8-fast")
CLIENTS = 4
TOKENS = 8


def measure(directory: Path, swaps: int) -> dict[str, object]:
    """Return how many requests failed, and how long a swap took."""
    settings: dict[str, object] = {
        "models": {
            MODEL: {
                "model": MODEL,
                "ladder": list(LADDER),
                "max_model_len": 1024,
                "kv_cache_memory_bytes": "64MiB",
            }
        }
    }
    with narrowgate(settings, directory) as way:
        before_mb = way.resident_mb()
        outcomes, seconds = asyncio.run(_swap(way.url, swaps))
        errors = [
            f"{each.status} {each.error}".strip() for each in outcomes.all if not each.is_whole
        ]
        return {
            "swaps": len(seconds),
            "swap_median_s": median(seconds),
            "swap_max_s": max(seconds),
            "requests": len(outcomes.all),
            "failed": len(errors),
            "errors": errors[:5],
            "gateway_mb_before": before_mb,
            "gateway_mb_after": way.resident_mb(),
        }


async def _swap(url: str, swaps: int) -> tuple[Outcomes, list[float]]:
    outcomes = Outcomes()
    seconds: list[float] = []
    done = asyncio.Event()

    async def client() -> None:
        while not done.is_set():
            outcomes.all.append(await ask(url, MODEL, max_tokens=TOKENS))

    clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        for number in range(swaps):
            name = f"{MODEL}@{LADDER[(number + 1) % len(LADDER)]}"
            started = time.monotonic()
            reply = await http.post(f"/admin/models/{name}/activate")
            reply.raise_for_status()
            seconds.append(time.monotonic() - started)
    done.set()
    await asyncio.gather(*clients)
    return outcomes, seconds
