"""What scoring every request costs the requests themselves, whatever its reference does.

``python -m benchmarks.shadow.isolation`` serves a model whose engine writes at a fixed pace, each
time behind a fresh gateway: without a shadow, with a sound reference, and with references that are
absent, crash, talk nonsense, refuse, hang, are slow, or are stopped by a signal. These take turns
in rounds. Of each one's 99th percentiles of the time to the first token and of the time between
tokens the medians over the rounds are compared with those without a shadow; how far two turns
without one are apart is the noise. With ``--kept FILE`` each turn is appended to a file, a run goes
on behind those that are there, and ``--turns`` ends it early.
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
from dataclasses import asdict, dataclass, field
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


@dataclass(frozen=True, slots=True)
class Turn:
    """One reference in one round."""

    shadow: str
    ttft_p99_ms: float
    itl_p99_ms: float
    num_requests: int
    failed: int
    scored: int
    dropped: dict[str, int]


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


def turn(name: str, *, requests: int, clients: int) -> Turn:
    """Serve behind a fresh gateway; return what clients saw, and what became of the scores."""
    with _serving(name) as gateway:
        asyncio.run(_round(gateway.port, requests=WARM_UP, clients=clients))
        if name == "stopped":
            _stop_reference(gateway)
        seen = asyncio.run(_round(gateway.port, requests=requests, clients=clients))
        status = gateway.http.get("/admin/shadow").json()["models"]["tiny"]
    ttft, itl = seen.p99_ms()
    return Turn(
        shadow=name,
        ttft_p99_ms=round(ttft, 3),
        itl_p99_ms=round(itl, 3),
        num_requests=len(seen.first) + seen.failed,
        failed=seen.failed,
        scored=status["scored"],
        dropped=status["dropped"],
    )


def order(rounds: int, references: Sequence[str]) -> Iterator[str]:
    """Yield who takes turns: in each round another one begins."""
    for number in range(rounds):
        start = number % len(references)
        yield from (*references[start:], *references[:start])


def read_turns(path: Path, planned: Sequence[str], requests: int) -> list[Turn]:
    """Return the turns of a file; none where there is no file.

    Raises:
        ValueError: they are not the beginning of what is planned.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    turns = [Turn(**json.loads(line)) for line in lines]
    names = [each.shadow for each in turns]
    if names != list(planned[: len(turns)]) or {each.num_requests for each in turns} - {requests}:
        raise ValueError(
            f"'--kept' is {path}: its turns are of a run with other options, give those or "
            "another file"
        )
    return turns


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


def table(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Return a row of figures for each reference."""
    rows = []
    base = _medians(turns, "off")
    for name in dict.fromkeys(each.shadow for each in turns):
        own = [each for each in turns if each.shadow == name]
        ttft, itl = _medians(turns, name)
        dropped: dict[str, int] = {}
        for each in own:
            for reason, count in each.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        rows.append(
            {
                "shadow": name,
                "ttft_p99_ms": round(ttft, 2),
                "ttft_ratio": round(ttft / base[0], 3),
                "ttft_p99_ms_of_rounds": [round(each.ttft_p99_ms, 2) for each in own],
                "itl_p99_ms": round(itl, 2),
                "itl_ratio": round(itl / base[1], 3),
                "itl_p99_ms_of_rounds": [round(each.itl_p99_ms, 2) for each in own],
                "requests": sum(each.num_requests for each in own),
                "failed": sum(each.failed for each in own),
                "scored": sum(each.scored for each in own),
                "dropped": dropped,
            }
        )
    return rows


def _medians(turns: Sequence[Turn], name: str) -> tuple[float, float]:
    own = [each for each in turns if each.shadow == name]
    return (
        statistics.median(each.ttft_p99_ms for each in own),
        statistics.median(each.itl_p99_ms for each in own),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and keep the figures; return 0 if all are within the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=400, help="of one in a round")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--references", nargs="+", choices=REFERENCES, default=REFERENCES)
    parser.add_argument("--kept", type=Path, help="append each turn, and go on behind them")
    parser.add_argument("--turns", type=int, default=sys.maxsize, help="at most, in this run")
    parser.add_argument("--out", type=Path, default=RESULTS / "shadow_isolation.json")
    options = parser.parse_args(arguments)
    planned = list(order(options.rounds, options.references))
    turns: list[Turn] = []
    try:
        if options.kept is not None:
            turns = read_turns(options.kept, planned, options.requests)
    except ValueError as error:
        parser.error(str(error))
    coming = planned[len(turns) :]
    for name in coming[: options.turns]:
        turns.append(turn(name, requests=options.requests, clients=options.clients))
        print(json.dumps(asdict(turns[-1])), file=sys.stderr, flush=True)
        if options.kept is not None:
            with options.kept.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(asdict(turns[-1]))}\n")
    if len(coming) > options.turns:
        print(f"{len(coming) - options.turns} turns are left", file=sys.stderr)
        return 1
    rows = table(turns)
    for row in rows:
        print(json.dumps(row))
    record = {
        "command": f"python -m benchmarks.shadow.isolation --rounds {options.rounds} "
        f"--requests {options.requests} --clients {options.clients}",
        "machine": describe(),
        "goal": GOAL,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    is_met = all(max(row["ttft_ratio"], row["itl_ratio"]) <= GOAL for row in rows)
    return 0 if is_met and not any(row["failed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
