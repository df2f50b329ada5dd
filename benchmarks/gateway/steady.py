"""Time to first token, throughput and processor time of each way, in turns, and their medians."""

import asyncio
import statistics
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gateway.load import Outcomes, run_streams
from benchmarks.gateway.scripted_engine import NAME
from benchmarks.gateway.ways import Way, litellm, narrowgate, scripted_engine, settle, vllm_router

FEW, MANY = 16, 64
TOKENS_PER_STREAM = 100
ROUNDS_OF_FEW = 4


@dataclass(frozen=True, slots=True)
class Turn:
    """One way in one turn."""

    way: str
    first_p50_ms: float
    first_p99_ms: float
    tokens_per_s: float
    cpu_s_per_1000_tokens: float
    resident_mb: float
    failed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians over the turns; what is added is against the direct way of the same turn."""

    way: str
    first_p50_ms: float
    added_first_p50_ms: float
    added_first_p99_ms: float
    tokens_per_s: float
    share_of_direct: float
    cpu_s_per_1000_tokens: float
    resident_mb: float
    failed: int


def measure(directory: Path, turns: int, peers: bool) -> list[dict[str, object]]:
    """Return the figures of every way to one engine."""
    with ExitStack() as stack:
        engine = stack.enter_context(scripted_engine())
        settings: dict[str, object] = {"models": {NAME: {"model": NAME, "urls": [engine]}}}
        ways = [Way("direct", engine, ())]
        ways.append(stack.enter_context(narrowgate(settings, directory)))
        if peers:
            ways.append(stack.enter_context(vllm_router(engine)))
            ways.append(stack.enter_context(litellm(engine, directory)))
        for way in ways:
            asyncio.run(run_streams(way.url, NAME, streams=4, rounds=2, tokens=10))
        rounds = [[asyncio.run(_turn(way)) for way in ways] for _ in range(turns)]
    return [asdict(_median([turn[index] for turn in rounds], rounds)) for index in range(len(ways))]


async def _turn(way: Way) -> Turn:
    few = await run_streams(way.url, NAME, streams=FEW, rounds=ROUNDS_OF_FEW, tokens=20)
    await settle()
    used = way.cpu_s()
    many = await run_streams(way.url, NAME, streams=MANY, rounds=2, tokens=TOKENS_PER_STREAM)
    used = way.cpu_s() - used
    await settle()
    return Turn(
        way=way.name,
        first_p50_ms=few.first_ms(0.5),
        first_p99_ms=few.first_ms(0.99),
        tokens_per_s=many.tokens / many.seconds,
        cpu_s_per_1000_tokens=1e3 * used / max(1, many.tokens),
        resident_mb=way.resident_mb(),
        failed=_failed(few) + _failed(many),
    )


def _failed(outcomes: Outcomes) -> int:
    return len(outcomes.all) - len(outcomes.whole)


def _median(turns: list[Turn], rounds: list[list[Turn]]) -> Figures:
    direct = [each[0] for each in rounds]
    pairs = list(zip(turns, direct, strict=True))
    return Figures(
        way=turns[0].way,
        first_p50_ms=statistics.median(each.first_p50_ms for each in turns),
        added_first_p50_ms=statistics.median(a.first_p50_ms - b.first_p50_ms for a, b in pairs),
        added_first_p99_ms=statistics.median(a.first_p99_ms - b.first_p99_ms for a, b in pairs),
        tokens_per_s=statistics.median(each.tokens_per_s for each in turns),
        share_of_direct=statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs),
        cpu_s_per_1000_tokens=statistics.median(each.cpu_s_per_1000_tokens for each in turns),
        resident_mb=max(each.resident_mb for each in turns),
        failed=sum(each.failed for each in turns),
    )
