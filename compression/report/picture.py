"""One picture of a comparison, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compression.report.files import write_aside
from compression.report.numbers import significant

_MB = 1e6


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw quality against size as a PNG, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    # matplotlib belongs to the embedded extra: tables must do without it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.6), dpi=150, layout="constrained")
    _draw(figure.add_subplot(), report)
    write_aside(path, lambda temporary: figure.savefig(temporary, format="png"))


def _draw(axes: Any, report: Mapping[str, Any]) -> None:
    recipes = report["recipes"]
    positive = [
        measured["kld_mean"]
        for recipe in recipes
        for measured in recipe["slices"].values()
        if measured["kld_mean"] > 0
    ]
    # A logarithmic axis has no zero: what is exactly 0 stands at the bottom and says so.
    floor = min(positive, default=1e-6) / 4
    sizes = [recipe["bytes"] for recipe in recipes]
    for index, recipe in enumerate(recipes):
        side = _label_side(recipe["bytes"], sizes, recipe["bytes_full"])
        _draw_recipe(axes, recipe, color=f"C{index % 10}", floor=floor, side=side)
    full_mb = max(recipe["bytes_full"] for recipe in recipes) / _MB
    axes.axvline(full_mb, color="0.4", linestyle=":", linewidth=1.2, zorder=0)
    axes.annotate(
        f"full\n{full_mb:,.0f} MB",
        (full_mb, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-5, -6),
        textcoords="offset points",
        ha="right",
        va="top",
        color="0.3",
    )
    axes.set_yscale("log")
    axes.set_ylim(floor / 1.5, max(positive, default=1e-5) * 2.5)
    axes.set_xlim(0, 1.06 * max(full_mb, *(size / _MB for size in sizes)))
    axes.set_xlabel("weights in memory, MB (smaller is to the left)")
    axes.set_ylabel("KL divergence from the full model, nats a token (better is down)")
    axes.set_title(f"{report['model']}: quality against size", fontweight="bold", parse_math=False)
    axes.grid(True, which="major", color="0.9")
    axes.grid(True, which="minor", axis="y", color="0.95", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label_side(size: int, sizes: Sequence[int], full: int) -> int:
    """Return 1 for a label on the right, -1 where the full model or a neighbour is there."""
    is_crowded = any(0 < other - size < 0.1 * full for other in sizes)
    return -1 if size > 0.7 * full or (is_crowded and size > 0.25 * full) else 1


def _draw_recipe(
    axes: Any, recipe: Mapping[str, Any], *, color: str, floor: float, side: int
) -> None:
    size_mb = recipe["bytes"] / _MB
    pooled = recipe["all"]
    heights = {
        name: max(measured["kld_mean"], floor) for name, measured in recipe["slices"].items()
    }
    ends = (min(heights.values()), max(heights.values()))
    axes.plot([size_mb, size_mb], ends, color=color, alpha=0.25, linewidth=2)
    axes.scatter([size_mb] * len(heights), heights.values(), s=26, color=color, alpha=0.5, lw=0)
    middle = max(pooled["kld_mean"], floor)
    axes.plot(size_mb, middle, marker="D", markersize=9, markeredgecolor="white", color=color)
    value = significant(pooled["kld_mean"]) if pooled["kld_mean"] else "exactly 0"
    axes.annotate(
        f"{recipe['recipe']}: {value}\n{size_mb:,.0f} MB, {recipe['bits_per_weight']:.2f} bits",
        (size_mb, middle),
        xytext=(11 * side, 0),
        textcoords="offset points",
        ha="left" if side > 0 else "right",
        va="center",
        color=color,
        fontweight="bold",
    )
    if pooled["kld_mean"]:
        axes.annotate(
            f"worst: {recipe['worst_slice']}",
            (size_mb, heights[recipe["worst_slice"]]),
            xytext=(-4 * side, 6),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="bottom",
            color=color,
            fontsize=9,
            parse_math=False,
        )
