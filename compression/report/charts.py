"""The drawings of a comparison's page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from compression.report.numbers import megabytes, significant
from compression.report.svg import Drawing, Linear, Logarithmic

Recipe = Mapping[str, Any]

COLOURS = 8
_LEVELS = (
    ("0.1 %", "p0_1", 0.001), ("1 %", "p1", 0.01), ("5 %", "p5", 0.05), ("10 %", "p10", 0.1),
    ("50 %", "median", 0.5), ("90 %", "p90", 0.9), ("95 %", "p95", 0.95), ("99 %", "p99", 0.99),
    ("99.9 %", "p99_9", 0.999),
)  # fmt: skip
_LABEL_HEIGHT = 32.0
_LABEL_WIDTH = 150.0
_CROWDED = 60.0
"""A mark with another one so near on its right has its label on the left."""


def colour(index: int) -> str:
    """Return the CSS class of a recipe's colour."""
    return f"c{index % COLOURS}"


def draw_frontier(recipes: Sequence[Recipe]) -> str:
    """Return quality against size: a point for each recipe, a line over its slices."""
    drawing = Drawing(760, 400, "KL divergence against the size of the weights, for each recipe")
    full = max(recipe["bytes_full"] for recipe in recipes)
    widest = max(full, *(recipe["bytes"] for recipe in recipes))
    x = Linear(0, 1.06 * widest / 1e6, 64, 744)
    means = [part["kld_mean"] for recipe in recipes for part in _parts(recipe)]
    y = _log_axis(means, 348, 16)
    _grid(drawing, x, y, "MB of weights in memory (smaller is left)", "KL divergence, nats (log)")
    drawing.line((x(full / 1e6), 16), (x(full / 1e6), 348), "reference")
    drawing.text((x(full / 1e6) - 6, 28), f"full, {megabytes(full)} MB", "muted", anchor="end")
    taken: list[tuple[float, float]] = []
    for index, recipe in sorted(enumerate(recipes), key=lambda item: item[1]["all"]["kld_mean"]):
        across = x(recipe["bytes"] / 1e6)
        for name, part in recipe["slices"].items():
            tip = f"{recipe['recipe']}, {name}: {significant(part['kld_mean'])}"
            drawing.dot((across, y(part["kld_mean"])), 3.5, f"{colour(index)} faint", tip)
        heights = [y(part["kld_mean"]) for part in _parts(recipe)]
        drawing.line((across, min(heights)), (across, max(heights)), f"{colour(index)} whisker")
        at = (across, y(recipe["all"]["kld_mean"]))
        gaps = [x(other["bytes"] / 1e6) - across for other in recipes]
        is_crowded = any(0 < gap < _CROWDED for gap in gaps) and across > _LABEL_WIDTH + 40
        is_left = is_crowded or across > 0.72 * drawing.width
        _point(drawing, recipe, at, colour(index), taken, is_left=is_left)
    return drawing.render()


def draw_slices(recipe: Recipe, index: int) -> str:
    """Return one bar a slice, worst first, each with its 95 % interval."""
    slices = recipe["slices"]
    height = 26 * len(slices) + 34
    drawing = Drawing(500, height, f"KL divergence of {recipe['recipe']} by slice")
    largest = max(part["kld_mean_ci95"][1] for part in slices.values())
    x = Linear(0, 1.02 * largest if largest else 1.0, 130, 430)
    for tick in x.ticks(4):
        drawing.line((x(tick), 4), (x(tick), height - 28), "grid")
        drawing.text((x(tick), height - 12), f"{tick:.3g}", "muted", anchor="middle")
    for row, (name, part) in enumerate(slices.items()):
        top = 26.0 * row + 6
        low, high = part["kld_mean_ci95"]
        value = significant(part["kld_mean"])
        tip = f"{name}: {value}, 95 % interval {significant(low)} to {significant(high)}"
        drawing.text((122, top + 13), _short(name, 18), anchor="end")
        drawing.bar((x(0), top), (x(part["kld_mean"]) - x(0), 18), colour(index), tip)
        drawing.line((x(low), top + 9), (x(high), top + 9), "error")
        for end in (low, high):
            drawing.line((x(end), top + 5), (x(end), top + 13), "error")
        drawing.text((x(high) + 8, top + 13), value, "muted")
    return drawing.render()


def draw_divergences(recipes: Sequence[Recipe]) -> str:
    """Return the quantiles of the divergence; the axis of shares is stretched at both ends."""
    drawing = Drawing(760, 380, "Quantiles of the KL divergence of single tokens")
    values = [recipe["all"][f"kld_{key}"] for recipe in recipes for _, key, _ in _LEVELS]
    y = _log_axis([value for value in values if value > 1e-12], 328, 16)
    x = Linear(_logit(0.001) - 0.4, _logit(0.999) + 0.4, 64, 744)
    _grid(drawing, None, y, "share of tokens with at most this divergence", "KL divergence (log)")
    for name, _, level in _LEVELS:
        drawing.line((x(_logit(level)), 16), (x(_logit(level)), 328), "grid")
        drawing.text((x(_logit(level)), 346), name, "muted", anchor="middle")
    for index, recipe in enumerate(recipes):
        points = []
        for name, key, level in _LEVELS:
            value = recipe["all"][f"kld_{key}"]
            if value > y.low:
                points.append((x(_logit(level)), y(value)))
                tip = f"{recipe['recipe']}, {name}: {significant(value)}"
                drawing.dot(points[-1], 4, colour(index), tip)
        drawing.path(points, f"{colour(index)} curve")
    return drawing.render()


def draw_probabilities(recipes: Sequence[Recipe]) -> str:
    """Return how the probability of the true token moved: nested bands of quantiles."""
    height = 44 * len(recipes) + 56
    drawing = Drawing(760, height, "Quantiles of the change of the true token's probability")
    ends = [abs(recipe["all"][f"delta_p_{key}"]) for recipe in recipes for key in ("p0_1", "p99_9")]
    reach = 105 * max(*ends, 1e-6)
    x = Linear(-reach, reach, 130, 744)
    for tick in x.ticks(8):
        drawing.line((x(tick), 4), (x(tick), height - 48), "grid" if tick else "zero")
        drawing.text(
            (x(tick), height - 32), f"{tick:+.3g}" if tick else "0", "muted", anchor="middle"
        )
    drawing.text((437, height - 10), "percentage points", "muted", anchor="middle")
    for index, recipe in enumerate(recipes):
        middle = 44.0 * index + 26
        moved = {key: 100 * recipe["all"][f"delta_p_{key}"] for _, key, _ in _LEVELS}
        moved |= {key: 100 * recipe["all"][f"delta_p_{key}"] for key in ("p25", "p75")}
        drawing.text((122, middle + 4), _short(recipe["recipe"], 18), anchor="end")
        bands = (("p0_1", "p99_9", 3, "0.1 to 99.9 %"), ("p5", "p95", 12, "5 to 95 %"))
        for low, high, thick, words in (*bands, ("p25", "p75", 24, "25 to 75 %")):
            tip = f"{words} of tokens: {moved[low]:+.3g} to {moved[high]:+.3g} points"
            corner, size = (x(moved[low]), middle - thick / 2), x(moved[high]) - x(moved[low])
            drawing.bar(corner, (size, thick), f"{colour(index)} band", tip)
        across = x(moved["median"])
        drawing.line((across, middle - 14), (across, middle + 14), "error")
    return drawing.render()


def _parts(recipe: Recipe) -> list[Mapping[str, Any]]:
    return list(recipe["slices"].values())


def _log_axis(values: Sequence[float], bottom: float, top: float) -> Logarithmic:
    """Return an axis for positive values; zeros stand below all of them, at its end."""
    positive = [value for value in values if value > 0]
    low = min(positive, default=1e-6)
    return Logarithmic(low / 3, 1.6 * max([*positive, 10 * low]), bottom, top)


def _grid(drawing: Drawing, x: Linear | None, y: Logarithmic, below: str, beside: str) -> None:
    left, right, bottom = 64.0, drawing.width - 16, y.start
    for tick in y.ticks():
        drawing.line((left, y(tick)), (right, y(tick)), "grid")
        drawing.text((left - 8, y(tick) + 4), f"{tick:g}", "muted", anchor="end")
    if x is not None:
        for tick in x.ticks(8):
            drawing.line((x(tick), y.end), (x(tick), bottom), "grid")
            drawing.text((x(tick), bottom + 18), f"{tick:g}", "muted", anchor="middle")
    drawing.text(((left + right) / 2, bottom + 40), below, "muted", anchor="middle")
    drawing.text((left + 6, y.end + 10), beside, "muted")


def _point(
    drawing: Drawing,
    recipe: Recipe,
    at: tuple[float, float],
    style: str,
    taken: list[tuple[float, float]],
    *,
    is_left: bool,
) -> None:
    """Draw a recipe's mark and its label, where no other label is."""
    across, down = at
    start = across - _LABEL_WIDTH if is_left else across
    level = down
    while any(abs(start - x) < _LABEL_WIDTH and abs(level - y) < _LABEL_HEIGHT for x, y in taken):
        level -= 4
    taken.append((start, level))
    mean = recipe["all"]["kld_mean"]
    value = significant(mean) if mean else "exactly 0"
    size = f"{megabytes(recipe['bytes'])} MB, {recipe['bits_per_weight']:.2f} bits"
    drawing.dot(at, 7, f"{style} mark", f"{recipe['recipe']}: {value}; {size}")
    side, anchor = (across - 14, "end") if is_left else (across + 14, "start")
    drawing.text(
        (side, level - 2), f"{_short(recipe['recipe'], 24)}: {value}", style, anchor=anchor
    )
    drawing.text((side, level + 13), size, "muted", anchor=anchor)


def _short(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
