"""How a comparison is shown: terminal tables, a JSON file, one picture.

Free of torch; matplotlib is imported only to draw. What a report holds is said at
``gateway.engine.compare.compare``.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from compression.errors import ReportError

Report = Mapping[str, Any]

_Z_95 = 1.96
_MB = 1e6


def render_tables(report: Report) -> list[Table]:
    """Return the summary of all recipes and the table of their slices, worst slice first."""
    return [_summary(report), _by_slice(report)]


def require_writable(path: Path, *, option: str) -> None:
    """Refuse, before the long work, a file that could not be written after it.

    Raises:
        ReportError: names the option and the path.
    """
    if path.is_dir():
        raise ReportError(f"{option} {str(path)!r} is a directory: name a file")
    parent = path.absolute().parent
    if not os.access(parent, os.W_OK | os.X_OK):
        reason = "is not writable" if parent.is_dir() else "does not exist"
        raise ReportError(f"{option} {str(path)!r}: {str(parent)!r} {reason}, name another file")


def write_json(report: Report, path: Path) -> None:
    """Write the report as indented JSON, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    body = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write_aside(path, lambda temporary: temporary.write_text(body, encoding="utf-8"))


def plot(report: Report, path: Path) -> None:
    """Draw quality against size as a PNG, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    # matplotlib belongs to the embedded extra: tables must do without it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 5.6), dpi=150, layout="constrained")
    _draw(figure.add_subplot(), report)
    _write_aside(path, lambda temporary: figure.savefig(temporary, format="png"))


def _write_aside(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise ReportError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _summary(report: Report) -> Table:
    table = _table(f"{escape(report['model'])}: compressed against full")
    table.add_column("recipe", overflow="ellipsis", style="bold")
    for header in ("size\nMB", "size\nratio", "bits/\nweight", "ms/\ntoken", "speed\nratio"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("KLD mean", justify="right", no_wrap=True)
    table.add_column("worst\nslice", overflow="ellipsis")
    table.add_column("top-1", justify="right", no_wrap=True)
    table.add_column("ppl ratio", justify="right", no_wrap=True)
    recipes = report["recipes"]
    if recipes and all(recipe["recipe"] != "full" for recipe in recipes):
        first = recipes[0]
        full_ms = f"{first['ms_per_token_full']:.1f}"
        table.add_row("full", _megabytes(first["bytes_full"]), "1.0x", "", full_ms, "1.0x")
    for recipe in recipes:
        pooled = recipe["all"]
        table.add_row(
            escape(recipe["recipe"]),
            _megabytes(recipe["bytes"]),
            f"{recipe['bytes_full'] / recipe['bytes']:.1f}x",
            f"{recipe['bits_per_weight']:.2f}",
            f"{recipe['ms_per_token']:.1f}",
            f"{recipe['ms_per_token_full'] / recipe['ms_per_token']:.1f}x",
            _with_error(pooled["kld_mean"], pooled["kld_mean_se"]),
            escape(recipe["worst_slice"]) if pooled["kld_mean"] else "",
            f"{100 * pooled['top1']:.1f}%",
            _with_error(pooled["ppl_ratio"], pooled["ppl_ratio_se"], decimals=3),
        )
    table.caption = (
        "KLD: divergence from the full model in nats a token, exact over the vocabulary. "
        "± is half a 95 % interval. Text: " + escape(report["text"])
    )
    return table


def _by_slice(report: Report) -> Table:
    table = _table("by slice, worst first")
    table.add_column("recipe", overflow="ellipsis", style="bold")
    table.add_column("slice", overflow="ellipsis")
    headers = ("tokens", "KLD mean", "KLD\np99", "KLD\nmax", "top-1 %", "ppl\nfull", "ppl ratio")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for recipe in report["recipes"]:
        label = escape(recipe["recipe"])
        for name, measured in _worst_first(recipe["slices"]):
            table.add_row(
                label,
                escape(name),
                str(measured["tokens"]),
                _with_error(measured["kld_mean"], measured["kld_mean_se"]),
                _significant(measured["kld_p99"]),
                _significant(measured["kld_max"]),
                f"{100 * measured['top1']:.1f} ±{100 * _Z_95 * measured['top1_se']:.1f}",
                _significant(measured["ppl_full"]),
                _with_error(measured["ppl_ratio"], measured["ppl_ratio_se"], decimals=3),
            )
            label = ""
        table.add_section()
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption_justify="left"
    )


def _worst_first(slices: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(slices.items(), key=lambda item: -item[1]["kld_mean"])


def _megabytes(size_bytes: int) -> str:
    megabytes = size_bytes / _MB
    return f"{megabytes:.1f}" if megabytes < 100 else f"{megabytes:,.0f}"


def _significant(value: float, *, decimals: int = 0) -> str:
    """Return three significant digits, and at least so many decimals below 100."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -3 or exponent > 4:
        return f"{value:.1e}"
    return f"{value:.{max(decimals if exponent < 2 else 0, 2 - exponent)}f}"


def _with_error(value: float, standard_error: float, *, decimals: int = 0) -> str:
    """Return the value and half of its 95 % interval, relative to it."""
    if value == 0:
        return "0"
    percent = 100 * _Z_95 * standard_error / value
    return f"{_significant(value, decimals=decimals)} ±{percent:.{1 if percent < 0.95 else 0}f}%"


def _draw(axes: Any, report: Report) -> None:
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
    value = _significant(pooled["kld_mean"]) if pooled["kld_mean"] else "exactly 0"
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
