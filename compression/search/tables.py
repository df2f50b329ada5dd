"""The outcome of a search for a terminal; free of torch."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from compression.report.numbers import significant

_SHOWN = 8
"""Sizes of the expected frontier that are shown."""


def render_search(report: Mapping[str, Any]) -> list[Table]:
    """Return the expected frontier, the measured points and the slices of the chosen one."""
    best = report["best"]
    return [_expected(report["frontier"], best), _trials(report["trials"], best), _slices(best)]


def _expected(frontier: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> Table:
    """Return some sizes, evenly spread, with what the chosen artifact lets expect of them."""
    table = Table(
        title="expected, from the costs of units and the chosen one", title_justify="left"
    )
    for title in ("memory", "KLD"):
        table.add_column(title, justify="right")
    costs = float(best["sum_of_unit_costs"])
    share = float(best["kld"]) / costs if costs > 0 else 1.0
    sizes = [float(point["bytes"]) for point in frontier]
    step = (sizes[-1] - sizes[0]) / (_SHOWN - 1)
    shown = {bisect_left(sizes, sizes[0] + step * turn) for turn in range(_SHOWN)}
    for index in sorted(min(each, len(sizes) - 1) for each in shown):
        table.add_row(
            _megabytes(sizes[index]),
            significant(share * float(frontier[index]["sum_of_unit_costs"])),
        )
    return table


def _trials(trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> Table:
    table = Table(title="measured artifacts", title_justify="left")
    for title in ("", "memory", "stored", "bits of linears", "KLD", "worst slice"):
        table.add_column(title, justify="right")
    for trial in sorted(trials, key=lambda each: float(each["bytes"])):
        is_best = trial["recipe_digest"] == best["recipe_digest"]
        table.add_row(
            "chosen" if is_best else "",
            _megabytes(trial["bytes"]),
            _megabytes(trial["bytes_stored"]),
            f"{trial['linear_bits_stored']:.2f}",
            significant(trial["kld"]),
            significant(trial["worst_slice_kld"]),
            style="bold" if is_best else None,
        )
    return table


def _slices(best: Mapping[str, Any]) -> Table:
    table = Table(title="the chosen one, worst slice first", title_justify="left")
    table.add_column("slice")
    for title in ("KLD", "95 % interval", "99 % of tokens", "same top token", "tokens"):
        table.add_column(title, justify="right")
    for part in sorted(best["slices"], key=lambda each: -float(each["kld_mean"])):
        low, high = part["kld_mean_ci95"]
        table.add_row(
            part["name"],
            significant(part["kld_mean"]),
            f"{significant(low)} to {significant(high)}",
            significant(part["kld_p99"]),
            f"{part['top1']:.1%}",
            str(part["tokens"]),
        )
    return table


def _megabytes(num_bytes: float) -> str:
    """Return megabytes with a decimal: artifacts of a search are close to each other."""
    return f"{num_bytes / 1e6:.1f} MB"
