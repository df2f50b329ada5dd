"""``python -m benchmarks.gateway [PART ...]`` measures the gateway and rewrites its results."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gateway import overload, soak, steady, swaps
from benchmarks.gateway.page import write_page
from benchmarks.gateway.ways import peer_pins
from benchmarks.machine import describe

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("steady", "overload", "swaps", "soak")


def main() -> None:
    """Measure the parts that are named, or all; what was measured before stays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--overload-s", type=float, default=20.0)
    parser.add_argument("--soak-minutes", type=float, default=20.0)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: use any of {', '.join(PARTS)}")
    file = RESULTS / "gateway.json"
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as directory:
            measured = _measure(part, Path(directory), options)
        # Read only now: another part may be measured beside this one.
        results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        results[part] = {"machine": describe(), "command": _command(part), "measured": measured}
        if part == "steady":
            results[part]["peers"] = peer_pins()
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_page(results, RESULTS / "gateway.md")
        print(json.dumps(measured, indent=1), flush=True)


def _measure(part: str, directory: Path, options: argparse.Namespace) -> object:
    if part == "steady":
        return steady.measure(directory, options.turns, not options.no_peers)
    if part == "overload":
        return overload.measure(directory, options.overload_s)
    if part == "swaps":
        return swaps.measure(directory, options.swaps)
    return soak.measure(directory, options.soak_minutes)


def _command(part: str) -> str:
    return f"python -m benchmarks.gateway {part}"


main()
