"""All engines of one model run side by side: each round asks every one of them in turn."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.engines.bandwidth import read_gb_per_s
from benchmarks.engines.children import EngineFailed
from benchmarks.engines.contestants import OURS, Contestant, Engine
from benchmarks.engines.measures import FIRST, LONG_LIMIT_S, MEASURES, Measure, Prompts

_SETTLE_S = 0.4
"""Threads of an engine that has just answered may still spin."""
_WARM_PROMPT, _WARM_TOKENS = 64, 4


class Progress:
    """Lines with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, words: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._started:6.0f} s  {words}", flush=True)


@dataclass(slots=True)
class Entry:
    """An engine that takes part, and its figures."""

    contestant: Contestant
    engine: Engine
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    too_long: set[str] = field(default_factory=set)
    failed: str | None = None

    def measure(self, measure: Measure, prompts: Sequence[Sequence[int]]) -> float | None:
        """Ask and keep the figure; None where it is not taken (again)."""
        found = None
        if self._reads_too_long(measure):
            self.too_long.add(measure.name)
        if self.failed is None and measure.name not in self.too_long:
            started = time.monotonic()
            try:
                found = measure.figure(self.engine.generate(prompts, measure.tokens))
            except EngineFailed as error:
                self.failed = str(error)
            if time.monotonic() - started > LONG_LIMIT_S:
                self.too_long.add(measure.name)
        self.figures.setdefault(measure.name, []).append(found)
        return found

    def skip(self, measure: Measure) -> None:
        """Note a round in which the figure is not taken."""
        self.figures.setdefault(measure.name, []).append(None)

    def _reads_too_long(self, measure: Measure) -> bool:
        """Tell from the shorter prompt whether prompts alone would take longer than the limit."""
        taken = [each for each in self.figures.get(FIRST.name, []) if each is not None]
        if not taken or measure.prompt <= FIRST.prompt:
            return False
        return min(taken) / 1e3 * measure.prompt / FIRST.prompt > LONG_LIMIT_S

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "title": self.contestant.title,
            "precision": self.contestant.precision,
            "family": self.contestant.family,
            "where": self.engine.where,
            "memory_mb": None if self.failed else round(self.engine.memory_mb(), 1),
            "figures": self.figures,
        }


def run(
    model: str,
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    measures: Sequence[Measure] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Return the figures of all engines with a model, and why some are left out.

    ``measures`` are those of the model where they are not given.
    """
    prompts = Prompts(model)
    chosen = MEASURES[model] if measures is None else tuple(measures)
    left_out: dict[str, str] = {}
    bandwidths: list[float] = []
    with ExitStack() as stack:
        entries = list(_started(stack, model, contestants, prompts, chosen, left_out, progress))
        for turn in range(rounds):
            bandwidths.append(read_gb_per_s())
            for measure in chosen:
                drawn = prompts.draw(measure, turn)
                for entry in rotated(entries, turn, rounds):
                    if turn and measure.is_ours_alone and entry.contestant.family != OURS:
                        entry.skip(measure)
                        continue
                    time.sleep(_SETTLE_S)
                    figure = entry.measure(measure, drawn)
                    shown = "not taken" if figure is None else f"{figure:.1f} {measure.unit}"
                    where = f"{model} round {turn + 1}/{rounds}"
                    progress.say(f"{where} {entry.contestant.name}: {measure.title} {shown}")
        left_out |= {e.contestant.name: e.failed for e in entries if e.failed is not None}
        records = {e.contestant.name: e.record() for e in entries}
    return {
        "bandwidth_gb_per_s": bandwidths,
        "engines": {name: each for name, each in records.items() if name not in left_out},
        "left_out": left_out,
    }


def rotated(entries: Sequence[Entry], turn: int, turns: int) -> list[Entry]:
    """Return the entries so that over all turns each stands near every place."""
    start = turn * len(entries) // max(turns, 1)
    return [*entries[start:], *entries[:start]]


def _started(
    stack: ExitStack,
    model: str,
    contestants: Sequence[Contestant],
    prompts: Prompts,
    measures: Sequence[Measure],
    left_out: dict[str, str],
    progress: Progress,
) -> Iterator[Entry]:
    """Start and warm up one after the other."""
    for contestant in contestants:
        progress.say(f"{model} {contestant.name} starts")
        with ExitStack() as own:
            try:
                engine = own.enter_context(contestant.start(model))
                for measure in measures:
                    drawn = prompts.draw(measure, -1)
                    engine.generate([ids[:_WARM_PROMPT] for ids in drawn], _WARM_TOKENS)
            except EngineFailed as error:
                left_out[contestant.name] = str(error)
                progress.say(f"{model} {contestant.name} is left out: {error}")
                continue
            stack.push(own.pop_all())
        yield Entry(contestant, engine)


def pick(names: Sequence[str], contestants: Sequence[Contestant]) -> list[Contestant]:
    """Return the contestants whose name or family is named.

    Raises:
        ValueError: a name is nobody's.
    """
    known = {each.name for each in contestants} | {each.family for each in contestants}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no engine {', '.join(unknown)}: use any of {', '.join(sorted(known))}")
    return [each for each in contestants if {each.name, each.family} & set(names)]
