"""Memory of a build: ``python -m benchmarks.build_memory``.

Makes a checkpoint of random bf16 weights with the shapes of Llama-3.2-1B in five shards (2.5 GB),
builds it without calibration in a process of its own, and compares the peak of that with a bare
interpreter that has imported torch. Everything is made below ``--work`` and removed afterwards.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
SHARDS = 5
RESULT = Path(__file__).parent / "results" / "build_memory"


def main() -> None:
    """Make the checkpoint, build it, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="5 GB free")
    parser.add_argument("--recipe", default="int4-fast")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="narrowgate-build-") as work:
        source = Path(work, "source")
        peak_of([sys.executable, "-m", "benchmarks.build_memory_source", str(source)])
        figures = measure(source, Path(work, "artifact"), options.recipe)
    figures["machine"] = describe()
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    RESULT.with_suffix(".md").write_text(_page(figures), encoding="utf-8")
    print(_page(figures))


def measure(source: Path, artifact: Path, recipe: str) -> dict[str, Any]:
    """Return the peaks of a bare interpreter with torch and of a build, and the build's time."""
    bare = peak_of([sys.executable, "-c", "import torch"])
    start = time.perf_counter()
    words = ["-m", "compression", "build", f"--model={source}", f"--recipe={recipe}"]
    peak = peak_of([sys.executable, *words, f"--out={artifact}"])
    seconds = time.perf_counter() - start
    manifest = json.loads((artifact / "compression_manifest.json").read_text(encoding="utf-8"))
    return {
        "recipe": recipe,
        "source_bytes": manifest["bytes_before"],
        "stored_bytes": manifest["bytes_stored"],
        "bare_peak_bytes": bare,
        "build_peak_bytes": peak,
        "above_bare_bytes": peak - bare,
        "declared_bytes": manifest["peak_declared_bytes"],
        "seconds": round(seconds, 1),
        "load_average": os.getloadavg()[0],
    }


def peak_of(command: list[str]) -> int:
    """Run a child to its end and return its peak resident memory in bytes."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command[:4])} ended with code {child.returncode}")
    return int(usage.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


def _page(figures: dict[str, Any]) -> str:
    megabytes = {
        name: f"{figures[f'{name}_bytes'] / 1e6:,.0f} MB"
        for name in ("source", "stored", "bare_peak", "build_peak", "above_bare", "declared")
    }
    return f"""# Memory of a build

`python -m benchmarks.build_memory`: random bf16 weights in the shapes of Llama-3.2-1B, {SHARDS}
shards, built with the recipe `{figures["recipe"]}` in a process of its own.

| what | figure |
|---|---|
| checkpoint | {megabytes["source"]} |
| artifact | {megabytes["stored"]} |
| peak of a bare interpreter with torch | {megabytes["bare_peak"]} |
| peak of the build | {megabytes["build_peak"]} |
| above the bare interpreter | **{megabytes["above_bare"]}** (declared: {megabytes["declared"]}) |
| time, reading and hashing the checkpoint included | {figures["seconds"]:.0f} s |

Machine: {figures["machine"]["processor"]}, {figures["machine"]["cores"]} cores, torch
{figures["machine"]["versions"]["torch"]}, load average {figures["load_average"]:.1f}.
"""


if __name__ == "__main__":
    main()
