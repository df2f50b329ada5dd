"""False alarms of the verdicts over a million undamaged requests, and delays of true ones.

``python -m benchmarks.shadow.false_alarms`` rewrites ``benchmarks/results/shadow_false_alarms.md``
and its JSON. The traffic is simulated; the monitor is the one that the service runs.
"""

import argparse
import json
import statistics
import time
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.shadow.traffic import MEAN, SHARES, Bursts, Damage, requests
from gateway.shadow.detector import Detector
from gateway.shadow.monitor import Monitor
from gateway.shadow.slices import ALL, all_slices
from gateway.shadow.tolerance import FalseAlarmBudget, ToleranceRules, Tolerances
from gateway.shadow.verdict import State

RESULTS = Path(__file__).parents[1] / "results"
BUDGET = FalseAlarmBudget(100_000)
FACTOR = 1.2
INDEPENDENT = Bursts()
MILD = Bursts(memory=0.9, spread=0.3)
STRONG = Bursts(memory=0.99, spread=0.5)
DAMAGES = (
    *(Damage(factor, ALL) for factor in (1.5, 2.0, 4.0, 100.0)),
    *(Damage(factor, "domain:code") for factor in (1.5, 2.0, 4.0)),
    *(Damage(factor, "script:cjk") for factor in (1.5, 2.0, 4.0)),
    *(Damage(factor, "position:256+") for factor in (2.0, 4.0)),
)
MOST = 60_000
"""Requests after which a drift that was not found counts as missed."""


def means(bursts: Bursts) -> dict[str, float]:
    """Return the mean divergence of each slice, in nats a token."""
    totals: defaultdict[str, float] = defaultdict(float)
    counts: Counter[str] = Counter()
    for scores in islice(requests(1, bursts), 300_000):
        counts.update(scores.keys())
        for name, value in scores.items():
            totals[name] += value
    return {name: totals[name] / counts[name] for name in counts}


def make_monitor(usual: dict[str, float]) -> Monitor:
    """Return a monitor whose tolerances are the usual means times the factor."""
    by_hand = {name: FACTOR * mean for name, mean in usual.items()}
    return Monitor("d", all_slices(), Tolerances(ToleranceRules(by_hand=by_hand), None))


def undamaged(usual: dict[str, float], bursts: Bursts, num: int) -> dict[str, Any]:
    """Return what the monitor says of undamaged traffic."""
    monitor = make_monitor(usual)
    alarms: Counter[str] = Counter()
    accepted: dict[str, int] = {}
    seen: Counter[str] = Counter()
    seconds = 0.0
    for number, scores in enumerate(islice(requests(2, bursts), num)):
        started = time.thread_time()
        changes = monitor.observe(scores, float(number))
        seconds += time.thread_time() - started
        seen.update(scores.keys())
        for change in changes:
            if change.after is State.DRIFT:
                alarms[change.slice] += 1
            elif change.after is State.OK:
                accepted.setdefault(change.slice, seen[change.slice])
    verdicts = monitor.verdicts().values()
    return {
        "requests": num,
        "false_alarms": sum(alarms.values()),
        "alarms_by_slice": dict(alarms),
        "promised": num / BUDGET.requests,
        "accepted_after": accepted,
        "ok_at_the_end": sum(each.state is State.OK for each in verdicts),
        "us_per_slice": 1e6 * seconds / sum(seen.values()),
    }


def at_the_border(bursts: Bursts, num: int) -> dict[str, Any]:
    """Return the alarms where every slice's mean is its tolerance, each detector begun anew."""
    usual = means(bursts)
    threshold = BUDGET.threshold(len(all_slices()))
    detectors = {name: Detector(threshold) for name in usual}
    alarms = 0
    for scores in islice(requests(3, bursts), num):
        for name, value in scores.items():
            if detectors[name].add(min(value / usual[name], 10.0)):
                alarms += 1
                detectors[name] = Detector(threshold)
    return {"requests": num, "false_alarms": alarms, "promised": num / BUDGET.requests}


def accepted(usual: dict[str, float]) -> dict[str, Any]:
    """Return the state of a monitor that has seen 20,000 undamaged requests."""
    monitor = make_monitor(usual)
    for number, scores in enumerate(islice(requests(4, INDEPENDENT), 20_000)):
        monitor.observe(scores, float(number))
    return monitor.to_state()


def delays(
    usual: dict[str, float], state: dict[str, Any], damage: Damage, runs: int
) -> dict[str, Any]:
    """Return after how many requests the damage was found, in its own slice."""
    found: list[int] = []
    found_in_slice: list[int] = []
    first: Counter[str] = Counter()
    for run in range(runs):
        monitor = make_monitor(usual)
        monitor.restore(state)
        in_slice = 0
        earliest = None
        for number, scores in enumerate(islice(requests(100 + run, INDEPENDENT, damage), MOST), 1):
            in_slice += damage.slice in scores
            drifted = [
                change.slice
                for change in monitor.observe(scores, float(number))
                if change.after is State.DRIFT
            ]
            earliest = earliest or next(iter(drifted), None)
            if damage.slice in drifted:
                found.append(number)
                found_in_slice.append(in_slice)
                break
        first[earliest or "none"] += 1
    return {
        "slice": damage.slice,
        "factor": damage.factor,
        "runs": runs,
        "missed": runs - len(found),
        "requests_median": statistics.median(found) if found else None,
        "requests_p95": _p95(found),
        "in_slice_median": statistics.median(found_in_slice) if found else None,
        "first_alarm": dict(first.most_common(3)),
    }


def _p95(values: list[int]) -> float | None:
    return sorted(values)[max(0, round(0.95 * len(values)) - 1)] if values else None


def render(results: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# False alarms of the verdicts, and delays of true ones",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {versions}.",
        "",
        f"The promise: {results['budget']}. The traffic is simulated",
        "(`benchmarks/shadow/traffic.py`): divergences with heavy tails around "
        f"{MEAN} nats a token,",
        "slices from 1 % to 85 % of the requests, the tolerance of each slice "
        f"{FACTOR} times its own mean.",
        "Bursts are a factor that all requests share for a while, with a lognormal spread and a",
        f"memory (mild: {MILD.spread} and {MILD.memory}; strong: {STRONG.spread} and "
        f"{STRONG.memory}).",
        "",
        "The promise is about the divergence to be expected given all requests before. In strong",
        "bursts that is above the tolerance for about a hundred requests at a time, though not on",
        "average: those alarms are outside of the promise, and one burst raises several at once.",
        "",
        "| undamaged traffic | scored requests | alarms | promised at most | CPU µs a slice |",
        "|---|---|---|---|---|",
    ]
    for name, run in results["undamaged"].items():
        lines.append(
            f"| {name} | {run['requests']:,} | {run['false_alarms']} | {run['promised']:g} "
            f"| {run['us_per_slice']:.1f} |"
        )
    border = results["border"]["independent"]
    lines += [
        f"| each mean exactly at its tolerance, detectors alone | {border['requests']:,} "
        f"| {border['false_alarms']} | {border['promised']:g} | |",
        "",
        *_acceptance(results["undamaged"]["mild bursts"]["accepted_after"]),
        "",
        "Damage to an accepted model (independent requests), until its own slice is in `drift`:",
        "",
        "| damaged slice | divergence times | scored requests, median | 95th percentile "
        "| of that slice, median | missed | first alarm in |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in results["delays"]:
        first = ", ".join(f"{name} ({count})" for name, count in run["first_alarm"].items())
        lines.append(
            f"| {run['slice']} | {run['factor']:g} | {_number(run['requests_median'])} "
            f"| {_number(run['requests_p95'])} | {_number(run['in_slice_median'])} "
            f"| {run['missed']} of {run['runs']} | {first} |"
        )
    return "\n".join(lines) + "\n"


def _acceptance(after: dict[str, int]) -> list[str]:
    counts = sorted(after.values())
    return [
        f"From `learning` to `ok`, a mean {FACTOR} times below its tolerance, needed",
        f"{counts[0]:,} to {counts[-1]:,} scored requests of a slice (median "
        f"{statistics.median(counts):,.0f}; {len(counts)} of {len(all_slices())} slices did).",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def main() -> None:
    """Run everything and write what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    usual = means(MILD)
    results: dict[str, Any] = {"undamaged": {}, "border": {}, "delays": []}
    tenth = options.requests // 10
    for name, bursts, num in (
        ("mild bursts", MILD, options.requests),
        ("independent", INDEPENDENT, tenth),
        ("strong bursts", STRONG, tenth),
    ):
        results["undamaged"][name] = undamaged(usual, bursts, num)
        print(name, results["undamaged"][name], flush=True)
    results["border"]["independent"] = at_the_border(INDEPENDENT, options.requests)
    print("border", results["border"], flush=True)
    state = accepted(usual)
    for damage in DAMAGES:
        results["delays"].append(delays(usual, state, damage, options.runs))
        print(results["delays"][-1], flush=True)
    results |= {
        "machine": describe(),
        "command": "python -m benchmarks.shadow.false_alarms "
        f"--requests {options.requests} --runs {options.runs}",
        "budget": BUDGET.in_words(len(all_slices())),
        "shares": SHARES,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "shadow_false_alarms"
    path.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(render(results), encoding="utf-8")


if __name__ == "__main__":
    main()
