"""The goals of the embedded engine, and how near to them a run's figures are."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.engines.bandwidth import floor_ms
from benchmarks.engines.checkpoints import LLAMA_1B, SMOLLM2
from benchmarks.engines.contestants import OURS
from benchmarks.engines.measures import FIRST, LONG, MANY, ONE, Measure

SERVED = f"{OURS}-int4"
"""Whose figures stand for one stream."""
_CACHES = (("bf16", SERVED), ("int8", f"{OURS}-w4-kv8"))
"""Whose figures stand for a long context, by what keys and values are kept in."""
_ROOM_MB = 500
_CONTEXT_TIMES = 1.35
_PEERS = ((SMOLLM2, 1.4, 2.0), (LLAMA_1B, 1.2, 1.4))
"""At least so many times the fastest peer, at most so many times the floor."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One goal and what was measured for it; ``value`` is None where figures are missing."""

    what: str
    goal: float
    is_least: bool
    value: float | None
    said: str
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """Return MET, NOT MET, or that it was not measured."""
        if self.value is None:
            return "not measured"
        is_met = self.value >= self.goal if self.is_least else self.value <= self.goal
        return "MET" if is_met else "NOT MET"


def outcomes(results: Mapping[str, Any]) -> list[Outcome]:
    """Return every goal in the order of the table."""
    models = results["models"]
    found: list[Outcome] = []
    for model, least, most in _PEERS:
        if model in models:
            found += _one_stream(model, models[model], least, most)
    if SMOLLM2 in models:
        found += list(_of_smollm2(models[SMOLLM2]))
    found += [_memory(model, each) for model, each in results["memory"].items()]
    return found


def median(figures: Sequence[float | None]) -> float | None:
    """Return the median of the rounds in which the figure was taken."""
    taken = [each for each in figures if each is not None]
    return statistics.median(taken) if taken else None


def best(model: Mapping[str, Any], measure: Measure, *, ours: bool) -> tuple[str, float] | None:
    """Return the name and the median of the best of ours, or of the peers."""
    medians = {
        name: middle
        for name, each in model["engines"].items()
        if (each["family"] == OURS) == ours
        and (middle := median(each["figures"].get(measure.name, []))) is not None
    }
    if not medians:
        return None
    value = measure.best(list(medians.values()))
    return next(name for name, middle in medians.items() if middle == value), value


def paired(model: Mapping[str, Any], measure: Measure, ours: str, theirs: str) -> float | None:
    """Return how many times as good ours is: the median over rounds that have both."""
    figures = [model["engines"][name]["figures"][measure.name] for name in (ours, theirs)]
    return median(
        [
            measure.times(one, other)
            for one, other in zip(*figures, strict=True)
            if one is not None and other is not None
        ]
    )


def floor_of(model: Mapping[str, Any]) -> float | None:
    """Return the milliseconds a token takes to read our int4 weights in the same run."""
    if not model.get("weights_bytes"):
        return None
    return floor_ms(model["weights_bytes"], statistics.median(model["bandwidth_gb_per_s"]))


def _one_stream(
    name: str, model: Mapping[str, Any], least: float, most: float
) -> Iterator[Outcome]:
    yield _against_peers(f"one stream, int4, {name}", model, ONE, least, ours=SERVED)
    floor, engine = floor_of(model), model["engines"].get(SERVED)
    middle = engine and median(engine["figures"].get(ONE.name, []))
    said = "" if floor is None or middle is None else f"{middle:.1f} ms against {floor:.1f} ms"
    value = None if floor is None or middle is None else middle / floor
    yield Outcome(f"one stream, int4, {name}, of the bandwidth floor", most, False, value, said)


def _against_peers(
    what: str, model: Mapping[str, Any], measure: Measure, least: float, *, ours: str | None = None
) -> Outcome:
    """Return the goal to be so many times as good as the fastest peer; our best unless named."""
    mine, peer = best(model, measure, ours=True), best(model, measure, ours=False)
    if ours is not None:
        engine = model["engines"].get(ours)
        middle = engine and median(engine["figures"].get(measure.name, []))
        mine = None if middle is None else (ours, middle)
    if mine is None or peer is None:
        return Outcome(what, least, True, None, "")
    said = f"{mine[0]} {mine[1]:.1f}, {peer[0]} {peer[1]:.1f} {measure.unit}"
    return Outcome(what, least, True, paired(model, measure, mine[0], peer[0]), said)


def _of_smollm2(model: Mapping[str, Any]) -> Iterator[Outcome]:
    yield _against_peers("16 streams together", model, MANY, 1.3)
    yield _against_peers("first token, 512-token prompt, idle", model, FIRST, 1.0)
    for cache, engine in _CACHES:
        figures = model["engines"].get(engine, {"figures": {}})["figures"]
        short, far = median(figures.get(ONE.name, [])), median(figures.get(LONG.name, []))
        value = None if short is None or far is None else far / short
        said = "" if value is None else f"{far:.1f} ms against {short:.1f} ms"
        what = f"2,000 against 200 tokens of context in {cache}, a token"
        yield Outcome(what, _CONTEXT_TIMES, False, value, said)


def _memory(model: str, memory: Mapping[str, Any]) -> Outcome:
    must = memory["weights_mb"] + memory["pages_mb"]
    said = (
        f"peak {memory['peak_mb']:.0f} MB, weights {memory['weights_mb']:.0f} MB, "
        f"pages {memory['pages_mb']:.0f} MB"
    )
    streams = f"{memory['streams']} x {memory['context']:,} tokens"
    what = f"memory beyond weights and pages, {streams}, {model}"
    return Outcome(what, _ROOM_MB, False, memory["peak_mb"] - must, said, unit="MB")
