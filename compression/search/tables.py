"""The outcome of a search for a terminal; free of torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from compression.report.numbers import megabytes, significant


def render_search(report: Mapping[str, Any]) -> list[Table]:
    """Return the measured points, smallest first, and the slices of the chosen one."""
    return [_trials(report["trials"], report["best"]), _slices(report["best"])]


def _trials(trials: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> Table:
    table = Table(title="measured artifacts", title_justify="left")
    for title in ("", "memory", "stored", "bits of linears", "KLD", "worst slice"):
        table.add_column(title, justify="right")
    for trial in sorted(trials, key=lambda each: float(each["bytes"])):
        is_best = trial["recipe_digest"] == best["recipe_digest"]
        table.add_row(
            "chosen" if is_best else "",
            megabytes(trial["bytes"]),
            megabytes(trial["bytes_stored"]),
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
