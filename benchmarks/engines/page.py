"""A run as a page for people: the goals, then every engine's medians."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.engines.contestants import OURS
from benchmarks.engines.goals import Outcome, best, floor_of, median, outcomes
from benchmarks.engines.measures import MEASURES, Measure

_LEAD = """# The embedded engine beside its peers

All engines of a model run side by side and are asked in turn, the same prompts as token ids, greedy
answers of fixed lengths; figures are medians over the rounds, ratios medians of the rounds' ratios.
Servers are asked over HTTP, libraries without one in a process of their own, without HTTP's cost.
"""


def render(results: Mapping[str, Any]) -> str:
    """Return the page."""
    parts = [_LEAD, _goals(outcomes(results))]
    parts += [_model(name, each) for name, each in results["models"].items()]
    if results["memory"]:
        parts.append(_memory(results["memory"]))
    parts.append(_machine(results))
    return "\n".join(parts)


def _goals(found: Sequence[Outcome]) -> str:
    rows = [
        f"| {each.what} | {_asked(each)} | {_value(each)} | {each.said} | {each.verdict} |"
        for each in found
    ]
    return _table(("goal", "asked", "measured", "figures", ""), rows)


def _asked(outcome: Outcome) -> str:
    border = "at least" if outcome.is_least else "at most"
    return f"{border} {_amount(outcome.goal, outcome.unit)}"


def _value(outcome: Outcome) -> str:
    return "-" if outcome.value is None else _amount(outcome.value, outcome.unit)


def _amount(value: float, unit: str) -> str:
    return f"{value:.2f} x" if unit == "x" else f"{value:.0f} {unit}"


def _model(name: str, model: Mapping[str, Any]) -> str:
    measures = [
        each
        for each in MEASURES[name]
        if any(each.name in engine["figures"] for engine in model["engines"].values())
    ]
    heads = ["engine", "asked", *(f"{each.title}, {each.unit}" for each in measures), "memory, MB"]
    fastest = {each.name: best(model, each, ours=False) for each in measures}
    rows = [_row(engine, measures, fastest) for engine in model["engines"].values()]
    parts = [f"## {name}\n", _table(heads, rows), _asked_of(measures), _floor(model)]
    if model["left_out"]:
        reasons = [f"- {each}: {why}" for each, why in sorted(model["left_out"].items())]
        parts.append("Left out:\n\n" + "\n".join(reasons) + "\n")
    parts.append(_source(model["source"], f"{model['rounds']} rounds, "))
    return "\n".join(parts)


def _asked_of(measures: Sequence[Measure]) -> str:
    told = [
        f"{each.title}: {each.streams} prompt{'s' * (each.streams > 1)} of {each.prompt} tokens, "
        f"answers of {each.tokens}"
        for each in measures
    ]
    return f"{'; '.join(told)}. Rates count the time from asking to the last token.\n"


def _row(
    engine: Mapping[str, Any],
    measures: Sequence[Measure],
    fastest: Mapping[str, tuple[str, float] | None],
) -> str:
    name = f"{engine['title']} {engine['precision']}"
    cells = [f"**{name}**" if engine["family"] == OURS else name, engine["where"]]
    for measure in measures:
        middle = median(engine["figures"].get(measure.name, []))
        cells.append("-" if middle is None else _against(middle, measure, fastest[measure.name]))
    memory = engine["memory_mb"]
    return "| " + " | ".join([*cells, "-" if memory is None else f"{memory:.0f}"]) + " |"


def _against(middle: float, measure: Measure, fastest: tuple[str, float] | None) -> str:
    if fastest is None:
        return f"{middle:.1f}"
    return f"{middle:.1f} ({measure.times(middle, fastest[1]):.2f})"


def _floor(model: Mapping[str, Any]) -> str:
    width = statistics.median(model["bandwidth_gb_per_s"])
    said = "In brackets: how many times as good as the fastest peer. "
    said += f"Both processors read {width:.1f} GB/s in the same rounds"
    if (floor := floor_of(model)) is not None:
        read = model["weights_bytes"] / 1e6
        said += f"; reading our {read:.0f} MB of int4 weights at that takes {floor:.1f} ms a token"
    return f"{said}. Memory is each engine's share (PSS) after the run, caches included.\n"


def _table(heads: Sequence[str], rows: Sequence[str]) -> str:
    return "\n".join(["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads), *rows, ""])


def _memory(memory: Mapping[str, Any]) -> str:
    heads = ("model", "recipe", "weights", "pages", "loaded, idle", "peak of loading", "peak")
    parts = ("weights_mb", "pages_mb", "idle_mb", "loading_peak_mb", "peak_mb")
    rows = [
        "| " + " | ".join([name, each["recipe"], *(f"{each[part]:.0f}" for part in parts)]) + " |"
        for name, each in memory.items()
    ]
    sources = {_source(each["source"]) for each in memory.values()}
    lead = (
        "## Memory of streams\n\nMB of our engine's process, resident, shared libraries and mapped "
        "files included: when it was loaded, at most until then, and at most while the streams "
        "filled their contexts. Pages are the cache's for all their tokens.\n"
    )
    return "\n".join([lead, _table(heads, rows), *sorted(sources)])


def _source(source: Mapping[str, Any], more: str = "") -> str:
    return (
        f"`{source['command']}`, {source['day']}, {more}{source['minutes']:.0f} minutes, "
        f"load before {source['load_before']:.1f}.\n"
    )


def _machine(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    versions = machine["versions"] | results["versions"]
    told = ", ".join(f"{name} {value}" for name, value in versions.items())
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB"
    return f"All on {where}; {told}\n"
