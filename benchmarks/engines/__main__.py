"""``python -m benchmarks.engines`` measures the embedded engine and its peers side by side.

The first run installs and converts what peers need (see ``--prepare``); results go to
``benchmarks/results/engines.json`` and ``engines.md``, beside those of models that were not asked
for where these are of the same machine and versions. ``--quick`` asks each engine once, for short
answers, and writes nothing there.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.engines import memory
from benchmarks.engines.checkpoints import MODELS
from benchmarks.engines.children import EngineFailed
from benchmarks.engines.contestants import ALL, Contestant, served_directory, versions
from benchmarks.engines.measures import LONG, MEASURES
from benchmarks.engines.page import render
from benchmarks.engines.rounds import Progress, pick, run
from benchmarks.engines.stored import merged
from benchmarks.machine import describe

RESULTS = Path(__file__).parents[1] / "results" / "engines"
_QUICK_TOKENS = 8


def main() -> int:
    """Measure; return the exit code."""
    options = _options()
    contestants = pick(options.engines, ALL) if options.engines else list(ALL)
    progress = Progress()
    # Whoever ends us must not leave engines behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.prepare:
            return _prepare(contestants, options.models, progress)
        results = _measure(contestants, options, progress)
    except KeyboardInterrupt:
        print("interrupted: what ran was ended, and nothing written", file=sys.stderr)
        return 130
    if not options.quick:
        results = merged(options.out.with_suffix(".json"), results)
    page = render(results)
    if not options.quick:
        options.out.with_suffix(".json").write_text(
            json.dumps(results, indent=1) + "\n", encoding="utf-8"
        )
        options.out.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    names = ", ".join(sorted({each.family for each in ALL}))
    parser.add_argument(
        "--engines", nargs="+", metavar="NAME", help=f"some of {names}, or NAME-PRECISION"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of short answers")
    parser.add_argument("--prepare", action="store_true", help="install, convert and start each")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory goal out")
    parser.add_argument("--no-times", action="store_true", help="measure the memory goal alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="files without their ending")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}: give 1 or more")
    if options.no_times and (options.no_memory or options.quick):
        parser.error("--no-times leaves nothing to measure with --no-memory or --quick: drop one")
    try:
        pick(options.engines or [], ALL)
    except ValueError as error:
        parser.error(str(error))
    return options


def _prepare(contestants: list[Contestant], models: list[str], progress: Progress) -> int:
    """Start every engine once, alone; return 1 if one cannot."""
    failed = 0
    for model in models:
        for contestant in contestants:
            if model not in contestant.models:
                continue
            try:
                with ExitStack() as stack:
                    engine = stack.enter_context(contestant.start(model))
                    engine.generate([list(range(300, 332))], 4)
                progress.say(f"{model} {contestant.name} runs")
            except EngineFailed as error:
                failed = 1
                progress.say(f"{model} {contestant.name} cannot: {error}")
    return failed


def _measure(
    contestants: list[Contestant], options: argparse.Namespace, progress: Progress
) -> dict[str, Any]:
    models: dict[str, Any] = {}
    memories: dict[str, Any] = {}
    for model in [] if options.no_times else options.models:
        source = _Source()
        models[model] = _times(model, contestants, options, progress)
        models[model]["source"] = source.record()
    for model in [] if options.no_memory or options.quick else options.models:
        source = _Source()
        progress.say(f"{model} memory of {memory.STREAMS} streams")
        memories[model] = memory.measure(model)
        memories[model]["source"] = source.record()
    return {
        "machine": describe(),
        "versions": versions(),
        "models": models,
        "memory": memories,
    }


def _times(
    model: str, contestants: list[Contestant], options: argparse.Namespace, progress: Progress
) -> dict[str, Any]:
    chosen = [each for each in contestants if model in each.models]
    measures = None
    if options.quick:
        short = (each for each in MEASURES[model] if each.name != LONG.name)
        measures = [replace(each, tokens=min(each.tokens, _QUICK_TOKENS)) for each in short]
    rounds = 1 if options.quick else options.rounds
    found = run(model, chosen, rounds=rounds, measures=measures, progress=progress)
    weights = memory.weights_bytes(served_directory("int4", model))
    return found | {"rounds": rounds, "weights_bytes": weights}


class _Source:
    """How figures came about: the command, when it ran, for how long, and beside what load."""

    def __init__(self) -> None:
        self._started, self._load = time.monotonic(), os.getloadavg()[0]

    def record(self) -> dict[str, Any]:
        """Return it as plain data, the minutes up to now."""
        words = " ".join(shlex.quote(word) for word in sys.argv[1:])
        return {
            "command": f"python -m benchmarks.engines {words}".strip(),
            "day": datetime.now(UTC).date().isoformat(),
            "minutes": (time.monotonic() - self._started) / 60,
            "load_before": self._load,
        }


sys.exit(main())
