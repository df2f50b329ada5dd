"""``python -m benchmarks.vllm [PART ...]`` measures the gateway over vLLM, rewrites the results."""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.vllm import cores, loss, proxy, replicas
from benchmarks.vllm.engines import RECIPE
from gateway.backends.vllm_facts import find_python, probe

RESULTS = Path(__file__).parents[1] / "results"
PARTS = {
    "proxy": proxy.measure,
    "replicas": replicas.measure,
    "cores": cores.measure,
    "loss": loss.measure,
}
_TITLES = {
    "proxy": "Through the gateway against direct to the same vLLM",
    "replicas": "Two engines on one core each against one on one core",
    "cores": "What two cores of the machine do of the work of one, without any engine",
    "loss": "One of two engines killed while all streams run",
}


def main() -> None:
    """Measure the parts that are named, or all; what was measured before stays."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: use any of {', '.join(PARTS)}")
    facts = asyncio.run(probe(find_python(None)))
    file = RESULTS / "vllm.json"
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as directory:
            measured = PARTS[part](Path(directory), options.turns)
        results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        command = f"python -m benchmarks.vllm {part} --turns {options.turns}"
        results[part] = {
            "machine": describe(),
            "vllm": facts.version,
            "command": command,
            "artifact": None if part == "cores" else RECIPE,
            "measured": measured,
        }
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "vllm.md").write_text(_page(results), encoding="utf-8")
        print(json.dumps(measured, indent=1), flush=True)


def _page(results: Mapping[str, Any]) -> str:
    parts = ["# The gateway over vLLM\n"]
    for part in PARTS:
        if part not in results:
            continue
        found = results[part]
        rows = [
            f"| {key.replace('_', ' ')} | {_shown(value)} |"
            for key, value in found["measured"].items()
        ]
        machine = found["machine"]
        parts.append(
            f"## {_TITLES[part]}\n\n| what | measured |\n|---|---|\n" + "\n".join(rows) + "\n\n"
            f"`{found['command']}` on {machine['processor']}, {machine['cores']} cores; "
            f"vLLM {found['vllm']}, Narrowgate {machine['versions']['narrowgate']}"
            f"{_served(found)}.\n"
        )
    return "\n".join(parts)


def _served(found: Mapping[str, Any]) -> str:
    artifact = found["artifact"]
    return "" if artifact is None else f"; the demo model's {artifact} artifact, `enforce-eager`"


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


main()
