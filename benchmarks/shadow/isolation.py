"""What scoring every request costs the requests themselves, whatever its reference does.

``python -m benchmarks.shadow.isolation`` serves a model whose engine writes at a fixed pace, each
time behind a fresh gateway: without a shadow, with a sound reference, and with references that are
absent, crash, talk nonsense, refuse, hang, are slow, or are stopped by a signal. These take turns
in rounds. Of each one's 99th percentiles of the time to the first token and of the time between
tokens the medians over the rounds are compared with those without a shadow.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from tests.gateway.harness import Gateway

RESULTS = Path(__file__).parents[1] / "results"
FAULTS = ("absent", "crash", "nan", "refuse", "hang", "slow")
REFERENCES = ("off", "off again", "sound", *FAULTS, "stopped")
WARM_UP = 20
TOKENS, FIRST_S, PACE_S = 32, 0.03, 0.015
GOAL = 1.03
_PIECE = b'"content":"'


@dataclass(slots=True)
class Times:
    """What clients of one model saw in one round, in seconds."""

    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failed: int = 0

    def p99_ms(self) -> tuple[float, float]:
        """Return the 99th percentiles of the first token's time and of the gaps."""
        return _p99_ms(self.first), _p99_ms(self.gaps)


Seen = dict[str, list[Times]]
Books = dict[str, dict[str, Any]]


def _p99_ms(values: list[float]) -> float:
    return 1e3 * sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]


async def _stream(port: int, times: Times) -> None:
    script = {"tokens": TOKENS, "first_s": FIRST_S, "pace_s": PACE_S}
    turn = {"role": "user", "content": "one two three"}
    fields = {"model": "tiny", "messages": [turn], "stream": True, "fake": script}
    body = json.dumps(fields).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "connection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    sent = time.perf_counter()
    arrivals: list[float] = []
    tail = b""
    try:
        writer.write(head.encode() + body)
        while piece := await reader.read(65536):
            arrivals += [time.perf_counter()] * (piece.count(_PIECE) - piece.count(_PIECE + b'"'))
            tail = (tail + piece)[-64:]
            if b"[DONE]" in tail:
                break
    finally:
        writer.close()
    if len(arrivals) != TOKENS or b"[DONE]" not in tail:
        times.failed += 1
        return
    times.first.append(arrivals[0] - sent)
    times.gaps += [late - soon for soon, late in pairwise(arrivals)]


async def _round(port: int, *, requests: int, clients: int) -> Times:
    times, left = Times(), iter(range(requests))

    async def client() -> None:
        for _ in left:
            await _stream(port, times)

    await asyncio.gather(*(client() for _ in range(clients)))
    return times


def measure(rounds: int, requests: int, clients: int) -> tuple[Seen, Books]:
    """Let the references take turns; return what clients saw, and what became of the scores."""
    found: Seen = {name: [] for name in REFERENCES}
    books: Books = {name: {"scored": 0, "dropped": {}} for name in REFERENCES}
    for number in range(rounds):
        start = number % len(REFERENCES)
        for name in (*REFERENCES[start:], *REFERENCES[:start]):
            with _serving(name) as gateway:
                asyncio.run(_round(gateway.port, requests=WARM_UP, clients=clients))
                if name == "stopped":
                    _stop_reference(gateway)
                seen = asyncio.run(_round(gateway.port, requests=requests, clients=clients))
                found[name].append(seen)
                status = gateway.http.get("/admin/shadow").json()["models"]["tiny"]
            books[name]["scored"] += status["scored"]
            for reason, count in status["dropped"].items():
                dropped = books[name]["dropped"]
                dropped[reason] = dropped.get(reason, 0) + count
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return found, books


@contextmanager
def _serving(name: str) -> Iterator[Gateway]:
    rate = 0 if name.startswith("off") else 1
    shadow = {"rate": rate, "probe_every_s": 0, "score_timeout_s": 3, "max_running": 64}
    faults = {"tiny": name} if name in FAULTS else {}
    with tempfile.TemporaryDirectory() as directory:
        gateway = Gateway(Path(directory), {"shadow": shadow}, {"score_faults": faults})
        try:
            gateway.wait_ready()
            yield gateway
        finally:
            gateway.close()


def _stop_reference(gateway: Gateway) -> None:
    """Send SIGSTOP to the reference, as soon as there is one."""
    until = time.monotonic() + 20
    while not gateway.references and time.monotonic() < until:
        time.sleep(0.05)
    for pid in gateway.references[-1:]:
        os.kill(pid, signal.SIGSTOP)


def table(found: Seen, books: Books) -> list[dict[str, Any]]:
    """Return a row of figures for each model."""
    medians = {
        model: tuple(
            statistics.median(values) for values in zip(*(x.p99_ms() for x in seen), strict=True)
        )
        for model, seen in found.items()
    }
    base = medians["off"]
    return [
        {
            "shadow": model,
            "ttft_p99_ms": round(medians[model][0], 2),
            "ttft_ratio": round(medians[model][0] / base[0], 3),
            "itl_p99_ms": round(medians[model][1], 2),
            "itl_ratio": round(medians[model][1] / base[1], 3),
            "requests": sum(len(each.first) + each.failed for each in found[model]),
            "failed": sum(each.failed for each in found[model]),
            "scored": books[model]["scored"],
            "dropped": books[model]["dropped"],
        }
        for model in found
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep the figures; return 0 if all are within the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=200, help="of one in a round")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "shadow_isolation.json")
    options = parser.parse_args(arguments)
    found, books = measure(options.rounds, options.requests, options.clients)
    rows = table(found, books)
    for row in rows:
        print(json.dumps(row))
    record = {
        "command": "python -m benchmarks.shadow.isolation",
        "machine": describe(),
        "rounds": options.rounds,
        "clients": options.clients,
        "goal": GOAL,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    is_met = all(max(row["ttft_ratio"], row["itl_ratio"]) <= GOAL for row in rows)
    return 0 if is_met and not any(row["failed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
