"""A mixture of experts, built and served: ``python -m benchmarks.experts``.

Makes a sharded checkpoint of random bf16 weights in the family Qwen3-MoE (446 MB, 16 experts a
layer, 2 of which run), builds it with int4-fast and int8 in processes of their own, and decodes
with the checkpoint and both artifacts in turn. All is made below ``--work`` and removed afterwards.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.build_memory import measure, peak_of
from benchmarks.machine import describe

CONFIG: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 1024,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
RECIPES = ("int4-fast", "int8")
RESULT = Path(__file__).parent / "results" / "experts"


def main() -> None:
    """Make the checkpoint, build and decode, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="1 GB free")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work, prefix="narrowgate-experts-") as work:
        places = {"full": Path(work, "source"), **{each: Path(work, each) for each in RECIPES}}
        peak_of([sys.executable, "-m", "benchmarks.experts_child", "make", str(places["full"])])
        builds = {each: measure(places["full"], places[each], each) for each in RECIPES}
        for recipe, figures in builds.items():
            manifest = json.loads((places[recipe] / "compression_manifest.json").read_text())
            figures["manifest_peak_bytes"] = manifest["peak_build_bytes"]
        loads = {
            name: peak_of([sys.executable, "-m", "benchmarks.experts_child", "load", str(place)])
            for name, place in places.items()
        }
        spoken = Path(work, "speeds.json")
        words = [str(spoken), *map(str, places.values())]
        peak_of([sys.executable, "-m", "benchmarks.experts_child", "decode", *words])
        speeds = dict(zip(places, json.loads(spoken.read_text()), strict=True))
    figures = {"builds": builds, "load_peak_bytes": loads, "decode": speeds, "machine": describe()}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    RESULT.with_suffix(".md").write_text(_page(figures), encoding="utf-8")
    print(_page(figures))


def _page(figures: dict[str, Any]) -> str:
    builds = "\n".join(
        f"| {name} | {_mb(each['source_bytes'])} | {_mb(each['stored_bytes'])} "
        f"| {each['seconds']:.0f} s | {_mb(each['above_bare_bytes'])} "
        f"| {_mb(each['declared_bytes'])} |"
        for name, each in figures["builds"].items()
    )
    bare = next(iter(figures["builds"].values()))["bare_peak_bytes"]
    served = "\n".join(
        f"| {name} | {_mb(each['weights_bytes'])} | {_mb(figures['load_peak_bytes'][name] - bare)} "
        f"| {1000 / each['ms_per_token']:.1f} |"
        for name, each in figures["decode"].items()
    )
    machine = figures["machine"]
    return f"""# A mixture of experts

`python -m benchmarks.experts`: random bf16 weights of the family Qwen3-MoE, 8 layers of 16
experts, 2 of which run. Peaks are above a bare interpreter with torch ({_mb(bare)}).

| recipe | checkpoint | artifact | build | peak of the build | declared |
|---|---|---|---|---|---|
{builds}

| served | weights in memory | peak of loading | tokens/s, one stream |
|---|---|---|---|
{served}

Machine: {machine["processor"]}, {machine["cores"]} cores, torch {machine["versions"]["torch"]}.
"""


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


if __name__ == "__main__":
    main()
