"""The frontier as a Markdown page and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

CHECKED = "kept"
UNCHECKED = "kept, text not checked"
"""Of a point from results that do not say what they were measured on."""
_COLUMNS = (
    "method", "bits a weight, linears", "MB", "MB in files", "embedding", "mean KLD", "95 %",
    "worst slice", "its KLD", "top-1",
)  # fmt: skip


def render(results: dict[str, Any]) -> str:
    """Return the page: how it was measured, one row a method, smallest first."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    points = sorted(results["points"], key=lambda point: point["bytes"])
    return "\n".join(
        [
            "# The frontier: size against fidelity",
            "",
            f"`{results['command']}` on {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memory_gb']} GB, Linux {machine['kernel']}; {versions}.",
            "",
            f"SmolLM2-135M-Instruct, reordered. {results['tokens']} tokens of the seven built-in "
            "slices, which no method has calibrated on. Calibrated peers read the 16,384 tokens "
            "of a recipe's default calibration; our recipes read as much of the same text as they "
            "say. Every method's weights are dequantized to f32 and "
            "run by one evaluator, transformers in f32: only the error of the weights is compared. "
            "KLD is KL(full || compressed) over the whole vocabulary, in nats; the mean is over "
            "the slices, the interval is of all tokens pooled. MB counts linears and embedding "
            "(10⁶ bytes) as they are served; llama.cpp cannot put rows of 576 into k-quants and "
            "takes wider blocks there, which its size shows.",
            "",
            *_table(points),
            "",
            "![size against fidelity](frontier.png)",
            "",
            "| method | version | what it is |",
            "|---|---|---|",
            *(f"| {each['name']} | {each['version']} | {each['settings']} |" for each in points),
            "",
        ]
    )


def _table(points: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    for point in points:
        name = f"**{point['name']}**" if point["is_ours"] else point["name"]
        if "kept" in point:
            name += f" ({point['kept']})"
        low, high = point["kld_ci95"]
        lines.append(
            f"| {name} | {point['linear_bits']:.3f} | {point['bytes'] / 1e6:.1f} | "
            f"{point['stored_bytes'] / 1e6:.1f} | {point['embedding']} | {point['kld']:.4f} | "
            f"{low:.4f} to {high:.4f} | {point['worst_slice']} | {point['worst_kld']:.4f} | "
            f"{point['top1']:.3f} |"
        )
    return lines


def plot(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw mean KLD against total bytes and against bits a weight of the linears."""
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), sharey=True)
    for axis, (key, unit, label) in zip(
        axes,
        (("bytes", 1e6, "linears and embedding, MB"), ("linear_bits", 1, "bits a weight, linears")),
        strict=True,
    ):
        for is_ours, style in ((True, "o"), (False, "x")):
            some = [point for point in points if point["is_ours"] is is_ours]
            axis.plot(
                [point[key] / unit for point in some],
                [point["kld"] for point in some],
                style,
                label="Narrowgate" if is_ours else "others",
            )
        for point in points:
            place = (point[key] / unit, point["kld"])
            axis.annotate(
                point["name"], place, xytext=(4, 3), textcoords="offset points", fontsize=7
            )
        axis.set(yscale="log", xlabel=label)
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].set_ylabel("mean KLD over the slices, nats")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)
