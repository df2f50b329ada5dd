"""The results as a page for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_STEADY_HEAD = (
    "| way | first token p50 | added p50 | added p99 | tokens/s | share of direct "
    "| CPU s per 1,000 tokens | memory | failed |\n|---|---|---|---|---|---|---|---|---|\n"
)


def write_page(results: Mapping[str, Any], file: Path) -> None:
    """Write every part that was measured."""
    parts = ["# What the gateway costs and withstands\n"]
    for part, render in (
        ("steady", _steady),
        ("overload", _facts),
        ("swaps", _facts),
        ("soak", _facts),
    ):
        if part in results:
            found = results[part]
            parts.append(f"## {_TITLES[part]}\n\n{render(found['measured'])}\n{_source(found)}")
    file.write_text("\n".join(parts), encoding="utf-8")


_TITLES = {
    "steady": "Steady load in front of an engine of fixed speed, beside other gateways",
    "overload": "Ten times as many clients as may run",
    "swaps": "The active variant swapped under load, real engines",
    "soak": "A soak",
}


def _steady(figures: list[Mapping[str, Any]]) -> str:
    rows = [
        f"| {each['way']} | {each['first_p50_ms']:.1f} ms | {each['added_first_p50_ms']:.1f} ms "
        f"| {each['added_first_p99_ms']:.1f} ms | {each['tokens_per_s']:.0f} "
        f"| {each['share_of_direct']:.3f} | {each['cpu_s_per_1000_tokens']:.3f} "
        f"| {each['resident_mb']:.0f} MB | {each['failed']} |"
        for each in figures
    ]
    return (
        "First tokens: 16 streams, 4 requests each. The rest: 64 streams of 20 tokens a second, "
        "two requests each. Medians of turns in which all ways follow each other.\n\n"
        + _STEADY_HEAD
        + "\n".join(rows)
        + "\n"
    )


def _facts(figures: Mapping[str, Any]) -> str:
    rows = [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in figures.items()]
    return "| what | measured |\n|---|---|\n" + "\n".join(rows) + "\n"


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _source(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    versions += "".join(f", {pin}" for pin in found.get("peers", ()))
    return f"`{found['command']}` on {machine['processor']}, {machine['cores']} cores; {versions}\n"
