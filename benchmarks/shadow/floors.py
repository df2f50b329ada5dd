"""What the least tolerance decides: live scores of int8, sound and slightly damaged.

``python -m benchmarks.shadow.floors --sound FILE --damaged FILE`` reads what
``benchmarks.shadow.real_pair --scores FILE`` has kept, without and with ``--damage``. For each of
several least tolerances a monitor sees the sound requests in their order, then requests drawn from
them at random, and at last, behind some of these, damaged ones until the whole model drifts.
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.shadow.damage import RESULTS, SOUND_BEFORE
from benchmarks.shadow.real_pair import Kept, Scores
from compression.events import ignore
from compression.fidelity_record import SliceFidelity
from compression.prepare import prepare
from gateway.shadow.monitor import Monitor
from gateway.shadow.slices import ALL, all_slices
from gateway.shadow.tolerance import ToleranceRules, Tolerances
from gateway.shadow.verdict import State

FLOORS = (0.01, 0.005, 0.004, 0.003, 0.0001)
DRAWS = 100_000
LIMIT = 6_000

Event = tuple[int, str, State]
"""After how many requests a slice came into a state."""


def events(requests: Iterator[Kept], monitor: Monitor, begin: int = 0) -> Iterator[Event]:
    """Yield what changes while a monitor sees the requests."""
    for number, each in enumerate(requests, 1):
        for change in monitor.observe(each.slices, float(begin + number)):
            yield number, change.slice, change.after


def drawn(kept: Sequence[Kept], seed: int) -> Iterator[Kept]:
    """Yield requests at random, for ever."""
    choose = random.Random(seed)
    while True:
        yield choose.choice(kept)


def caught(
    sound: Sequence[Kept], damaged: Sequence[Kept], monitor: Monitor, seed: int
) -> tuple[Event | None, int | None]:
    """Return the first alarm behind sound requests, and how many it took for the whole model."""
    for _ in events(islice(drawn(sound, seed), SOUND_BEFORE), monitor):
        pass
    first: Event | None = None
    found = events(islice(drawn(damaged, seed), LIMIT), monitor, SOUND_BEFORE)
    for event in found:
        number, name, state = event
        if state is State.DRIFT:
            first = first or event
            if name == ALL:
                return first, number
    return first, None


def row(
    floor: float,
    sound: Sequence[Kept],
    damaged: Sequence[Kept],
    fidelity: Sequence[SliceFidelity],
    runs: int,
) -> dict[str, Any]:
    """Return what one least tolerance does."""
    tolerances = Tolerances(ToleranceRules(floor=floor), fidelity)

    def monitor() -> Monitor:
        return Monitor("benchmark", all_slices(), tolerances)

    real = list(events(iter(sound), monitor()))
    many = list(events(islice(drawn(sound, runs), DRAWS), monitor()))
    seen = [caught(sound, damaged, monitor(), seed) for seed in range(runs)]
    first = sorted(event[0] for event, _ in seen if event is not None)
    whole = sorted(number for _, number in seen if number is not None)
    tolerance = tolerances.of(ALL)
    return {
        "floor": floor,
        "tolerance": tolerance.nats if tolerance else None,
        "ok_after": next((n for n, name, to in real if (name, to) == (ALL, State.OK)), None),
        "alarms": [(n, name) for n, name, to in real if to is State.DRIFT],
        "drawn_alarms": sum(to is State.DRIFT for _, _, to in many),
        "runs": runs,
        "seen": len(first),
        "first_median": statistics.median(first) if first else None,
        "first_most": first[-1] if first else None,
        "first_in": sorted({event[1] for event, _ in seen if event is not None}),
        "whole_seen": len(whole),
        "whole_median": statistics.median(whole) if whole else None,
        "whole_most": whole[-1] if whole else None,
    }


def render(results: dict[str, Any]) -> str:
    """Return the results as a page."""
    machine = results["machine"]
    lines = [
        "# The least tolerance: false alarms, and a small damage",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"Linux {machine['kernel']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "",
        f"Answers that SmolLM2-135M-Instruct wrote in int8, {results['sound']:,} of the sound "
        f"artifact ({results['sound_nats']:.4f} nats a token)",
        f"and {results['damaged']:,} of one in which the scales of one linear layer are 10 % too "
        f"large ({results['damaged_nats']:.4f}), scored",
        "by the full model as the shadow does it (`benchmarks.shadow.real_pair`). "
        "*False alarms*: of the sound requests",
        f"in their order, and of {DRAWS:,} drawn from them with replacement, for which one is "
        "promised at most.",
        f"*Seen*: damaged requests, drawn as well, behind {SOUND_BEFORE} sound ones; median and "
        f"most of {results['runs']} runs that end",
        f"at {LIMIT:,} requests.",
        "",
        "| least tolerance | tolerance of all | `ok` after | false alarms, in order | drawn "
        "| damage seen in the first slice | in the whole model |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results["rows"]:
        alarms = ", ".join(f"{name} after {n}" for n, name in each["alarms"]) or "0"
        lines.append(
            f"| {each['floor']:g} | {each['tolerance']:.4f} | {_number(each['ok_after'])} "
            f"| {alarms} | {each['drawn_alarms']} "
            f"| {_seen(each, 'first', 'seen')} | {_seen(each, 'whole', 'whole_seen')} |"
        )
    return "\n".join(lines) + "\n"


def _seen(row: dict[str, Any], name: str, count: str) -> str:
    if not row[count]:
        return f"in none of {row['runs']} runs"
    text = f"{_number(row[f'{name}_median'])}, {_number(row[f'{name}_most'])}"
    missed = row["runs"] - row[count]
    return text + (f" (not in {missed} of {row['runs']} runs)" if missed else "")


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:,.0f}"


def main() -> None:
    """Replay what was kept, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sound", type=Path, required=True)
    parser.add_argument("--damaged", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=11)
    options = parser.parse_args()
    sound, damaged = Scores(options.sound).kept, Scores(options.damaged).kept
    manifest = prepare("smollm2", "int8", None, ignore, is_measured=True).manifest
    fidelity = manifest.fidelity if manifest else None
    results: dict[str, Any] = {
        "command": "python -m benchmarks.shadow.floors --sound SOUND --damaged DAMAGED "
        f"--runs {options.runs}",
        "machine": describe(),
        "sound": len(sound),
        "sound_nats": statistics.fmean(each.mean for each in sound),
        "damaged": len(damaged),
        "damaged_nats": statistics.fmean(each.mean for each in damaged),
        "runs": options.runs,
        "rows": [],
    }
    for floor in FLOORS:
        results["rows"].append(row(floor, sound, damaged, fidelity or (), options.runs))
        print(json.dumps(results["rows"][-1]), flush=True)
    path = RESULTS / "shadow_floors"
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
