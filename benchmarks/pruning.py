"""What pruning costs on the demo model, by score and compensation.

``python -m benchmarks.pruning`` rewrites ``benchmarks/results/pruning.md`` and ``pruning.json``.
Every divergence is the mean over the built-in evaluation slices, which no method has seen.
``--untimed`` leaves the seconds out, for a machine that has other work to do.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.divergence import SLICE_TOKENS, Evaluation, load
from benchmarks.machine import describe
from benchmarks.masked_heads import HEADS, THIRD, MaskedHeads
from compression.calibration_text import calibration_windows
from compression.demo_model import ensure_demo_model
from compression.events import ignore
from compression.facts import CheckpointFacts, read_facts
from compression.pruning.prune import prune_on
from compression.recipe import Calibration, Prune

RESULTS = Path(__file__).parent / "results"
MAGNITUDE: dict[str, Any] = {"score": "magnitude", "compensate": False}
WRITTEN = {
    "1 query head of each group": HEADS,
    "1 key-value head with its query heads": Prune(kv_groups=1),
    "1 key-value head, by magnitude, uncompensated": Prune(kv_groups=1, **MAGNITUDE),
    "128 of 1536 neurons (10 %, rounded)": Prune(neurons=0.1),
    "128 of 1536 neurons, by magnitude, uncompensated": Prune(neurons=0.1, **MAGNITUDE),
}


def main() -> None:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--untimed", action="store_true", help="leave the seconds out")
    is_timed = not parser.parse_args().untimed
    directory = ensure_demo_model()
    facts = read_facts(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    windows = calibration_windows(Calibration(), tokenizer, 512)
    evaluation = Evaluation(directory, tokenizer)
    results: dict[str, Any] = {
        "machine": describe(),
        "command": " ".join(["python -m benchmarks.pruning", *sys.argv[1:]]),
        "calibration_tokens": windows.numel(),
        "slice_tokens": SLICE_TOKENS,
        "masked": [],
        "written": [],
    }
    for name, recipe in WRITTEN.items():
        row = written(facts, name, recipe, windows, evaluation)
        if not is_timed:
            del row["seconds"]
        results["written"].append(row)
        save(results)
    for row in MaskedHeads(facts, windows).measure(evaluation):
        results["masked"].append(row)
        save(results)


def save(results: dict[str, Any]) -> None:
    """Write what is measured so far."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "pruning.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = render(results)
    (RESULTS / "pruning.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


def written(
    facts: CheckpointFacts, name: str, recipe: Prune, windows: Tensor, evaluation: Evaluation
) -> dict[str, Any]:
    """Prune the checkpoint for good, load the result in transformers and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        text = windows if recipe.compensate or recipe.score != "magnitude" else None
        record = prune_on(facts, recipe, text, Path(scratch), ignore)
        kld = evaluation.kld(load(Path(scratch)))
    return {
        "removed": name,
        "recipe": recipe.model_dump(mode="json"),
        "architecture": record.architecture,
        "compensation": record.compensation,
        "bytes": record.bytes_after / record.bytes_before,
        "seconds": record.seconds,
        "calibration_kld": record.kld,
        "kld": kld,
    }


def render(results: dict[str, Any]) -> str:
    """Return the results as a Markdown page."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    masked = results["masked"]
    lines = [
        "# Pruning, measured",
        "",
        f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {versions}.",
        f"SmolLM2-135M-Instruct in float32; {results['calibration_tokens']} built-in calibration "
        f"tokens; KL divergence in nats, mean over the seven evaluation slices of up to "
        f"{results['slice_tokens']} tokens each. No training.",
        "",
        f"One query head of each group removed, in all 30 layers and in the {THIRD} layers that "
        "the score ranks lowest (the equivalent of a third of the heads' weights), as zeros in "
        "the float32 model:",
        "",
        "| score | compensation | all layers | of the first row | a third | of the first row |",
        "|---|---|---|---|---|---|",
    ]
    for row in masked:
        cells = [f"| {row['score']} | {row['compensation']} |"]
        for key in ("all_layers", "a_third"):
            ratio = _mean(row[key]) / _mean(masked[0][key])
            cells.append(f" {_mean(row[key]):.4f} | {ratio:.2f} |")
        lines.append("".join(cells))
    lines += [
        "",
        "Written as smaller checkpoints by `compression.pruning`, scored by fluctuation and "
        "compensated unless said otherwise, and loaded in transformers:",
        "",
        "| removed from every layer | KLD | worst slice | bytes | seconds |",
        "|---|---|---|---|---|",
    ]
    for row in results["written"]:
        seconds = f"{row['seconds']:.0f}" if "seconds" in row else "not timed"
        lines.append(
            f"| {row['removed']} | {_mean(row['kld']):.4f} | {max(row['kld'].values()):.4f} | "
            f"{row['bytes']:.3f} | {seconds} |"
        )
    return "\n".join([*lines, ""])


def _mean(slices: dict[str, float]) -> float:
    return sum(slices.values()) / len(slices)


if __name__ == "__main__":
    main()
