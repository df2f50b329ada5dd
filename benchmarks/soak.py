"""A soak of the embedded engine: mixed traffic for minutes, then nothing may be left behind.

``python -m benchmarks.soak --minutes 10`` rewrites ``benchmarks/results/soak.md`` and its JSON.
Sixteen clients send short and long prompts, plain and streamed, some alike from the beginning on,
some with several answers or a JSON form; some leave in the middle; texts are scored beside them.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.machine import describe
from compression.events import ignore
from compression.prepare import prepare
from gateway.backends.embedded import command, free_port
from gateway.model_settings import VariantSettings

RESULTS = Path(__file__).parent / "results"
CLIENTS = 16
RECIPE = "int4-fast"
NAME = f"soak@{RECIPE}"
CACHE_BYTES = 48 * 1024 * 1024
SYSTEM = "You are a lighthouse keeper who answers briefly and remembers every ship. " * 12
SAMPLE_S = 5.0


@dataclass
class Soak:
    """What the clients saw, and how large the engine was meanwhile."""

    url: str
    until: float
    outcomes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    tokens: int = 0
    resident_mb: list[float] = field(default_factory=list)

    async def client(self, number: int) -> None:
        """Send one request after the other."""
        choose = random.Random(number)
        async with httpx.AsyncClient(base_url=self.url, timeout=300) as http:
            while time.monotonic() < self.until:
                kind = choose.choice(["plain", "stream", "leave", "several", "form", "score"])
                try:
                    await getattr(self, f"_{kind}")(http, choose)
                    self.outcomes[kind] += 1
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.errors.append(f"{kind}: {type(error).__name__}: {error}"[:300])

    async def watch(self, process: psutil.Process) -> None:
        """Note the engine's resident size every few seconds."""
        while time.monotonic() < self.until:
            self.resident_mb.append(process.memory_info().rss / 1e6)
            await asyncio.sleep(SAMPLE_S)

    async def _plain(self, http: httpx.AsyncClient, choose: random.Random) -> None:
        self._count(await self._post(http, _body(choose)))

    async def _several(self, http: httpx.AsyncClient, choose: random.Random) -> None:
        reply = await self._post(http, _body(choose) | {"n": 3, "temperature": 0.8})
        _require(len(reply["choices"]) == 3, "three answers")
        self._count(reply)

    async def _form(self, http: httpx.AsyncClient, choose: random.Random) -> None:
        form = {"response_format": {"type": "json_object"}, "max_tokens": 200}
        reply = await self._post(http, _body(choose) | form)
        if reply["choices"][0]["finish_reason"] == "stop":
            json.loads(reply["choices"][0]["message"]["content"])
        self._count(reply)

    async def _stream(self, http: httpx.AsyncClient, choose: random.Random) -> None:
        body = _body(choose) | {"stream": True}
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = [line async for line in reply.aiter_lines() if line]
        _require(lines[-1] == "data: [DONE]", f"the end of a stream, not {lines[-1][:80]}")
        self.tokens += len(lines) - 3

    async def _leave(self, http: httpx.AsyncClient, choose: random.Random) -> None:
        body = _body(choose) | {"stream": True, "max_tokens": 400}
        stay = choose.randint(0, 20)
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            async for _ in reply.aiter_lines():
                stay -= 1
                if stay < 0:
                    break

    async def _score(self, http: httpx.AsyncClient, choose: random.Random) -> None:
        ids = [choose.randrange(3, 40_000) for _ in range(choose.randint(10, 400))]
        body = {
            "model": NAME,
            "token_ids": ids,
            "start": 1,
            "candidates": [[each, 7] for each in ids[1:]],
        }
        # Background work waits while others are served, and a full soak never rests.
        try:
            reply = await http.post("/engine/score", json=body, timeout=5)
        except httpx.ReadTimeout:
            self.outcomes["score given up"] += 1
            return
        _require(reply.status_code == 200, f"scores, not {reply.text[:100]}")

    async def _post(self, http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
        reply = await http.post("/v1/chat/completions", json=body)
        _require(reply.status_code == 200, f"an answer, not {reply.text[:100]}")
        found: dict[str, Any] = reply.json()
        return found

    def _count(self, reply: dict[str, Any]) -> None:
        self.tokens += reply["usage"]["completion_tokens"]


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"expected {what}")


def _body(choose: random.Random) -> dict[str, Any]:
    words = choose.choice([3, 10, 40, 300])
    question = " ".join(
        choose.choice(["sea", "ship", "storm", "lamp", "night"]) for _ in range(words)
    )
    messages = [{"role": "user", "content": question}]
    if choose.random() < 0.5:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    return {
        "model": NAME,
        "messages": messages,
        "max_tokens": choose.choice([1, 8, 32, 96]),
        "temperature": choose.choice([0, 0.7, 1.0]),
        "seed": choose.randrange(1 << 30),
    }


def main() -> None:
    """Run the soak and write what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    directory = prepare("smollm2", RECIPE, None, ignore).directory
    settings = VariantSettings(model="smollm2", max_model_len=2048)
    port = free_port()
    words = command(
        directory,
        served_name=NAME,
        port=port,
        settings=settings,
        kv_cache_memory_bytes=CACHE_BYTES,
    )
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(words) as engine:
        try:
            _wait_until_healthy(url)
            results = asyncio.run(_soak(url, engine.pid, minutes))
        finally:
            engine.terminate()
    results["exit_code"] = engine.returncode
    results |= {
        "machine": describe(),
        "command": f"python -m benchmarks.soak --minutes {minutes:g}",
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = render(results)
    (RESULTS / "soak.md").write_text(page, encoding="utf-8")
    print(page)


async def _soak(url: str, pid: int, minutes: float) -> dict[str, Any]:
    soak = Soak(url, time.monotonic() + 60 * minutes)
    clients = [soak.client(number) for number in range(CLIENTS)]
    await asyncio.gather(soak.watch(psutil.Process(pid)), *clients)
    await asyncio.sleep(2)
    return {
        "minutes": minutes,
        "outcomes": dict(soak.outcomes),
        "errors": soak.errors,
        "tokens": soak.tokens,
        "resident_mb": soak.resident_mb,
        "metrics": _metrics(url),
    }


def _metrics(url: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        if not sample.name.endswith("_bucket"):
            reason = sample.labels.get("finished_reason", "")
            found[" ".join([sample.name, reason]).strip()] = sample.value
    return found


def _wait_until_healthy(url: str) -> None:
    for _ in range(1200):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError("the engine did not start within two minutes")


def render(results: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    machine, metrics = results["machine"], results["metrics"]
    sizes = results["resident_mb"]
    quarter = max(1, len(sizes) // 4)
    second, last = sizes[quarter : 2 * quarter], sizes[-quarter:]
    prefix = "narrowgate_engine_"
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(results["outcomes"].items()))
    rows = {
        "requests that ended as they should": f"{sum(results['outcomes'].values())} ({outcomes})",
        "errors": str(len(results["errors"])),
        "tokens sent": str(results["tokens"]),
        "preemptions": f"{metrics[f'{prefix}preemptions_total']:.0f}",
        "prompt tokens not read again": f"{metrics[f'{prefix}prefix_cache_hits_total']:.0f} of "
        f"{metrics[f'{prefix}prefix_cache_queries_total']:.0f}",
        "sequences running or waiting at the end": f"{metrics[f'{prefix}sequences_running']:.0f}, "
        f"{metrics[f'{prefix}sequences_waiting']:.0f}",
        "share of the pages held at the end": f"{metrics[f'{prefix}kv_cache_usage_ratio']:g}",
        "resident MB, second quarter and last": f"{statistics.median(second):.0f}, "
        f"{statistics.median(last):.0f}",
        "exit code": str(results["exit_code"]),
    }
    lines = [
        "# A soak of the embedded engine",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {versions}.",
        f"SmolLM2-135M-Instruct, {RECIPE}, {CLIENTS} clients, a cache of {CACHE_BYTES >> 20} MiB.",
        "",
        "| what | seen |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
