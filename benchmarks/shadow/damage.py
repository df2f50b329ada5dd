"""Damage in the files of a real artifact, and how many scored requests it takes to be caught.

``python -m benchmarks.shadow.damage`` scores the demo model in int8 and damaged copies of it on
the built-in texts, once each, and replays these scores in random order until a verdict is
``drift``. It also starts the engine of each artifact and has it read the fixed texts, as a gateway
does at the load; ``--at-load`` does that alone and leaves all other figures as they were.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.shadow.at_load import check_at_load
from benchmarks.shadow.coarse_cache import with_coarse_cache
from benchmarks.shadow.damaged import DAMAGES, write_damaged
from benchmarks.shadow.scores import (
    PROMPT_TOKENS,
    Read,
    Text,
    divergences,
    read,
    score,
    score_decoded,
    texts,
)
from compression.events import ignore
from compression.fidelity_record import SliceFidelity
from compression.fixed_texts import ALL as ALL_TEXTS
from compression.prepare import prepare
from compression.recipe import FULL
from gateway.engine.fixed_texts import add_reading
from gateway.engine.runner import load_runner
from gateway.shadow.divergence import Divergence, joined
from gateway.shadow.fixed_texts_finding import Outcome
from gateway.shadow.monitor import Monitor
from gateway.shadow.slices import ALL, all_slices
from gateway.shadow.tolerance import ToleranceRules, Tolerances
from gateway.shadow.verdict import State

RESULTS = Path(__file__).parents[1] / "results"
TOKENS = 64
LONG_TOKENS = 320
BEYOND = 256
SOUND_BEFORE = 400
LIMIT = 3_000
MAX_MODEL_LEN = 512
SOUND = "none"
DECODED, COARSE = "none, decoded token by token", "cache of 2 bits, decoded"


@dataclass(frozen=True, slots=True)
class Scored:
    """A text and what was found of it."""

    text: Text
    found: Divergence


@dataclass(frozen=True, slots=True)
class Caught:
    """When damage was seen, in scored requests since it began; None: not within the limit."""

    any_slice: int | None
    first: tuple[str, ...]
    """The slices whose verdict changed first."""
    whole: int | None


def replay(
    sound: Sequence[Scored],
    damaged: Sequence[Scored],
    fidelity: Sequence[SliceFidelity],
    *,
    before: int,
    seed: int,
) -> Caught:
    """Feed ``before`` sound requests, then damaged ones until the whole model drifts."""
    choose = random.Random(seed)
    monitor = Monitor("benchmark", all_slices(), Tolerances(ToleranceRules(), fidelity))
    for number in range(before):
        each = choose.choice(sound)
        monitor.observe(divergences(each.text, each.found), float(number))
    count = 0
    first: tuple[str, ...] = ()
    any_slice: int | None = None
    while count < LIMIT:
        each, count = choose.choice(damaged), count + 1
        changes = monitor.observe(divergences(each.text, each.found), float(before + count))
        drifted = tuple(change.slice for change in changes if change.after is State.DRIFT)
        if drifted and any_slice is None:
            any_slice, first = count, drifted
        if ALL in drifted:
            return Caught(any_slice, first, count)
    return Caught(any_slice, first, None)


def measure(per_kind: int, num_long: int, threads: int) -> tuple[dict[str, list[Scored]], Any]:
    """Return the scores of all texts under the sound artifact and each damaged one."""
    artifact = prepare("smollm2", "int8", None, ignore, is_measured=True)
    source = prepare("smollm2", FULL, None, ignore).directory
    full = load_runner(source, threads=threads, max_model_len=MAX_MODEL_LEN)
    short = [read(full, each) for each in texts(source, per_kind, TOKENS)]
    long = [read(full, each) for each in texts(source, num_long, LONG_TOKENS)]

    def scores(directory: Path, expected: Sequence[Read]) -> list[Scored]:
        served = load_runner(directory, threads=threads, max_model_len=MAX_MODEL_LEN)
        scored = [Scored(each.text, score(full, each, served)) for each in expected]
        print(f"{directory.name}: {mean(scored):.4f} nats, {len(scored)} texts", flush=True)
        return scored

    found = {"sound": scores(artifact.directory, short)}
    found["sound, long"] = scores(artifact.directory, long)
    with tempfile.TemporaryDirectory() as scratch:
        for name, damage in DAMAGES.items():
            place = Path(scratch) / name.replace(" ", "-").replace("%", "")
            write_damaged(artifact.directory, damage, place)
            found[name] = scores(place, short)
            if name == "three heads":
                found["three heads, long"] = scores(place, long)
    served = load_runner(artifact.directory, threads=threads, max_model_len=MAX_MODEL_LEN)
    for name, runner in ((DECODED, served), (COARSE, with_coarse_cache(served))):
        found[name] = [Scored(each.text, score_decoded(full, each, runner)) for each in short]
        print(f"{name}: {mean(found[name]):.4f} nats, {len(short)} texts", flush=True)
    return found, artifact.manifest


def measure_at_load(threads: int) -> tuple[dict[str, dict[str, Any]], int]:
    """Return by damage what engines of the artifacts say of the fixed texts, and their tokens."""
    artifact = prepare("smollm2", "int8", None, ignore, is_measured=True).directory
    add_reading(artifact, threads, ignore)
    found: dict[str, dict[str, Any]] = {}
    tokens = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, damage in {SOUND: None, **DAMAGES}.items():
            place = artifact
            if damage is not None:
                place = Path(scratch) / name.replace(" ", "-").replace("%", "")
                write_damaged(artifact, damage, place)
            seen = asyncio.run(check_at_load(place, threads=threads))
            tokens = seen.tokens
            found[name] = {
                "outcome": seen.outcome,
                "nats": seen.distances[ALL_TEXTS],
                "usual": seen.usual[ALL_TEXTS],
                "limit": seen.limits[ALL_TEXTS],
                "texts": [each for each in seen.changed if each != ALL_TEXTS],
                "seconds": seen.seconds,
            }
            print(f"{name}: {found[name]}", flush=True)
    return found, tokens


def mean(scored: Sequence[Scored]) -> float:
    """Return the mean of the requests' means, nats a token."""
    return statistics.fmean(each.found.mean_kl for each in scored)


def composed(found: Mapping[str, Sequence[Scored]]) -> dict[str, tuple[list[Scored], list[Scored]]]:
    """Return sound and damaged requests where damage is in one part of the traffic only."""
    sound, broken = found["sound"], found["three heads"]
    code = [
        bad if bad.text.kind == "code" else good for good, bad in zip(sound, broken, strict=True)
    ]
    start = BEYOND - PROMPT_TOKENS
    late = [
        Scored(good.text, joined([_cut(good.found, 0, start), _cut(bad.found, start, None)]))
        for good, bad in zip(found["sound, long"], found["three heads, long"], strict=True)
    ]
    everything = [*sound, *found["sound, long"]]
    return {
        "three heads, for code only": (list(sound), code),
        f"three heads, beyond {BEYOND} tokens only": (everything, [*sound, *late]),
    }


def _cut(found: Divergence, start: int, stop: int | None) -> Divergence:
    part = slice(start, stop)
    return Divergence(found.kl[part], found.agrees[part], found.nll[part], found.nll_delta[part])


def row(
    name: str,
    sound: Sequence[Scored],
    damaged: Sequence[Scored],
    fidelity: Sequence[SliceFidelity],
    runs: int,
) -> dict[str, Any]:
    """Return how soon a damage is caught: from the first request on, and after sound ones."""
    result: dict[str, Any] = {"damage": name, "mean_nats": mean(damaged)}
    for key, before in (("at_once", 0), ("after", SOUND_BEFORE)):
        caught = [
            replay(sound, damaged, fidelity, before=before, seed=seed) for seed in range(runs)
        ]
        seen = [each.any_slice for each in caught if each.any_slice is not None]
        whole = [each.whole for each in caught if each.whole is not None]
        first: dict[str, int] = {}
        for each in caught:
            for name_of in each.first:
                first[name_of] = first.get(name_of, 0) + 1
        result[key] = {
            "runs": runs,
            "caught": len(seen),
            "median": statistics.median(seen) if seen else None,
            "whole_caught": len(whole),
            "whole_median": statistics.median(whole) if whole else None,
            "first": dict(sorted(first.items(), key=lambda item: -item[1])[:3]),
        }
    return result


def render(results: Mapping[str, Any]) -> str:
    """Return the results as a page."""
    machine = results["machine"]
    lines = [
        "# Damage in an artifact's files, and how soon it is caught",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"Linux {machine['kernel']}; "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "",
        "SmolLM2-135M-Instruct in int8, scored against the full model over the likeliest 20 tokens",
        f"as the shadow does it, on {results['texts']} built-in texts of {TOKENS} tokens (and "
        f"{results['long_texts']} of {LONG_TOKENS}),",
        "read in one pass unless the row says otherwise. The scores are drawn with replacement;",
        f"each run ends at {LIMIT:,} requests. Tolerances are those of the artifact's manifest",
        f"(all: {results['tolerance']:.4f} nats a token). *At once*: damaged from the first "
        f"request; *after*: behind {SOUND_BEFORE} sound ones.",
        *_words_at_load(results.get("at_load")),
        "",
        "| damage | mean KLD, nats | at load: 0 requests "
        "| at once: requests to the first alarm, median | whole model "
        "| after: requests to the first alarm, median | whole model | first alarm in |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in results["rows"]:
        once, after = each["at_once"], each["after"]
        first = ", ".join(f"{name} ({count})" for name, count in after["first"].items())
        lines.append(
            f"| {each['damage']} | {each['mean_nats']:.4f} | {_at_load(each.get('at_load'))} "
            f"| {_count(once, '')} "
            f"| {_count(once, 'whole_')} | {_count(after, '')} | {_count(after, 'whole_')} "
            f"| {first or '-'} |"
        )
    return "\n".join(lines) + "\n"


def _words_at_load(about: Mapping[str, Any] | None) -> list[str]:
    if about is None:
        return []
    return [
        "",
        "*At load*: once it is ready, the engine's own process reads fixed texts "
        f"({about['tokens']:,} tokens), and the log-probabilities",
        "are held against those that the build kept, before any request is scored. The figure is "
        "how far off they are over the limit",
        f"(`{about['command']}`).",
    ]


def _at_load(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    share = f"{found['nats']:.4f} of {found['limit']:.4f} nats"
    return f"**caught** ({share})" if found["outcome"] == Outcome.CHANGED else f"not ({share})"


def _count(part: Mapping[str, Any], prefix: str) -> str:
    median = part[f"{prefix}median"]
    if median is None:
        return f"none in {part['runs']} runs"
    missed = part["runs"] - part[f"{prefix}caught"]
    return f"{median:,.0f}" + (f" (missed in {missed} of {part['runs']} runs)" if missed else "")


def main() -> None:
    """Measure, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-kind", type=int, default=4, help="texts of each kind")
    parser.add_argument("--long", type=int, default=1, help="long texts of each kind")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-load", action="store_true", help="only what engines read at load")
    options = parser.parse_args()
    path = RESULTS / "shadow_damage"
    if options.at_load:
        results = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    else:
        results = measure_scores(options)
    found, tokens = measure_at_load(options.threads)
    results["at_load"] = {
        "command": "python -m benchmarks.shadow.damage --at-load",
        "machine": describe(),
        "tokens": tokens,
    }
    for each in results["rows"]:
        if each["damage"] in found:
            each["at_load"] = found[each["damage"]]
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(results), encoding="utf-8")
    print(render(results))


def measure_scores(options: argparse.Namespace) -> dict[str, Any]:
    """Return all results but those of engines at their load."""
    found, manifest = measure(options.per_kind, options.long, options.threads)
    fidelity = manifest.fidelity
    sound = found["sound"]
    rows = [row(SOUND, sound, sound, fidelity, options.runs)]
    rows += [row(each, sound, found[each], fidelity, options.runs) for each in DAMAGES]
    decoded = found[DECODED]
    rows += [row(name, decoded, found[name], fidelity, options.runs) for name in (DECODED, COARSE)]
    for name, (before, after) in composed(found).items():
        rows.append(row(name, before, after, fidelity, options.runs))
    tolerance = Tolerances(ToleranceRules(), fidelity).of(ALL)
    return {
        "command": "python -m benchmarks.shadow.damage "
        f"--per-kind {options.per_kind} --long {options.long} --runs {options.runs}",
        "machine": describe(),
        "texts": len(sound),
        "long_texts": len(found["sound, long"]),
        "tolerance": tolerance.nats if tolerance else None,
        "rows": rows,
    }


if __name__ == "__main__":
    main()
