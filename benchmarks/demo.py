"""The figures of the demo: speed through the gateway, start, build, size, memory, fidelity.

``make bench`` runs it and rewrites ``benchmarks/results/demo.md`` and ``demo.json``.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.served import Served, serve
from compression.demo_model import ensure_demo_model

RESULTS = Path(__file__).parent / "results"
PROMPT = "Write a long story about a lighthouse keeper and the sea."
ROUNDS = 5
TOKENS = 96
WARM_STARTS = 3
BUILDS = 3


def main() -> None:
    """Measure everything and write the results."""
    directory = ensure_demo_model()
    results: dict[str, Any] = {"machine": describe(), "command": "make bench"}
    results["decode"] = decode_speed(directory)
    results["warm_start_s"] = [warm_start() for _ in range(WARM_STARTS)]
    results["build_int4"] = [build_int4() for _ in range(BUILDS)]
    results["fidelity"] = fidelity()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = render(results)
    (RESULTS / "demo.md").write_text(text, encoding="utf-8")
    print(text)


def decode_speed(directory: Path) -> dict[str, Any]:
    """Time one stream of each recipe through the gateway and transformers' eager bf16, in turn."""
    peer = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.eager", str(directory), PROMPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with peer, serve("int4") as int4, serve("int8") as int8, serve("full") as full:
        if peer.stdin is None or peer.stdout is None:
            raise RuntimeError("the peer has no pipes")
        peer.stdout.readline()
        streams: dict[str, list[float]] = {"int4": [], "int8": [], "full": [], "eager bf16": []}
        first: dict[str, list[float]] = {"int4": [], "int8": [], "full": []}
        for server in (int4, int8, full):
            server.stream(PROMPT, 16)
        for _ in range(ROUNDS):
            for name, server in (("int4", int4), ("int8", int8), ("full", full)):
                stream = server.stream(PROMPT, TOKENS)
                streams[name].append(stream.ms_per_token)
                first[name].append(stream.first_token_s)
            peer.stdin.write(f"{TOKENS}\n")
            peer.stdin.flush()
            streams["eager bf16"].append(json.loads(peer.stdout.readline())["ms"][-1])
        measured = {"ms_per_token": streams, "first_token_s": first, "sizes": sizes(int4)}
        measured["resident_mb"] = int4.resident_mb()
        peer.stdin.close()
    return measured


def sizes(server: Served) -> dict[str, Any]:
    """Return weight bytes before and after, as the engine reads them from its live tensors."""
    card = server.models()[0]
    return {key: card[key] for key in ("weights_bytes", "weights_uncompressed_bytes")}


def warm_start() -> float:
    """Return the seconds from `narrowgate serve` to the first token, the artifact being stored."""
    with serve("int4") as server:
        ready = time.perf_counter()
        return ready - server.started + server.stream("Hi", 4).first_token_s


def build_int4() -> dict[str, float]:
    """Return the seconds of `narrowgate build --recipe int4`, whole and without process start."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "artifact"
        words = ["-m", "gateway", "build", "--model", "smollm2", "--recipe", "int4"]
        start = time.perf_counter()
        subprocess.run([sys.executable, *words, "--out", str(out)], check=True, capture_output=True)
        wall = time.perf_counter() - start
        manifest = json.loads((out / "compression_manifest.json").read_text(encoding="utf-8"))
    return {
        "wall_s": wall,
        "build_s": manifest["seconds"],
        "peak_mb": manifest["peak_memory_bytes"] / 1e6,
    }


def fidelity() -> dict[str, Any]:
    """Return the report of `narrowgate compare` for int4 and int8."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "report.json"
        words = ["-m", "gateway", "compare", "--model", "smollm2"]
        words += ["--recipe", "int4", "--recipe", "int8", "--json", str(path)]
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def render(results: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    machine, decode = results["machine"], results["decode"]
    speed = {name: statistics.median(runs) for name, runs in decode["ms_per_token"].items()}
    first = {name: statistics.median(runs) for name, runs in decode["first_token_s"].items()}
    eager = speed["eager bf16"]
    ratio = decode["sizes"]["weights_bytes"] / decode["sizes"]["weights_uncompressed_bytes"]
    build = {
        key: statistics.median(run[key] for run in results["build_int4"])
        for key in ("wall_s", "build_s", "peak_mb")
    }
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        "# The demo, measured",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {versions}.",
        f"SmolLM2-135M-Instruct, one stream of {TOKENS} tokens through the gateway, medians of "
        f"{ROUNDS} rounds taken in turn.",
        "",
        "| | ms a token | of eager bf16 | first token, ms |",
        "|---|---|---|---|",
    ]
    for name in ("int4", "int8", "full", "eager bf16"):
        waited = f"{1e3 * first[name]:.0f}" if name in first else ""
        lines.append(f"| {name} | {speed[name]:.1f} | {speed[name] / eager:.2f} | {waited} |")
    lines += [
        "",
        "| | |",
        "|---|---|",
        f"| `narrowgate serve` to first token, artifact stored | "
        f"{statistics.median(results['warm_start_s']):.1f} s |",
        f"| `narrowgate build --recipe int4`, whole command | {build['wall_s']:.1f} s |",
        f"| of which the build itself | {build['build_s']:.1f} s |",
        f"| peak memory of the build | {build['peak_mb']:.0f} MB |",
        f"| weights in memory at int4, of bf16 | {ratio:.3f} |",
        f"| gateway process, resident | {decode['resident_mb']['gateway']:.0f} MB |",
        f"| int4 engine process, resident | {decode['resident_mb']['engines']:.0f} MB |",
        "",
        "| recipe | slice | KLD mean | KLD p99 | top-1 | perplexity ratio | tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe in results["fidelity"]["recipes"]:
        for name, slice_ in [*recipe["slices"].items(), ("all", recipe["all"])]:
            lines.append(
                f"| {recipe['recipe']} | {name} | {slice_['kld_mean']:.4f} | "
                f"{slice_['kld_p99']:.3f} | {slice_['top1']:.3f} | {slice_['ppl_ratio']:.4f} | "
                f"{slice_['tokens']} |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
