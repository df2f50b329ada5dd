"""A comparison in a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.table import Table

from compression.fidelity_statistics import GROUPS, STATISTICS
from compression.report.numbers import megabytes, share, significant, with_interval
from compression.report.on_vllm import HEADERS, measured_on_vllm, vllm_note, vllm_rows

Report = Mapping[str, Any]

_NAME_WIDTH = max(len(statistic.name) for statistic in STATISTICS)
_VALUE_WIDTH = 24


def render_tables(report: Report, *, statistics: bool = False) -> list[RenderableType]:
    """Return the summary of all recipes and the table of their slices, worst slice first.

    What vLLM ran has a table more.
    With ``statistics``, every statistic of every slice too, under llama.cpp's names.
    """
    tables: list[RenderableType] = [_summary(report), _by_slice(report)]
    if recipes := measured_on_vllm(report):
        tables.append(_on_vllm(recipes))
    if statistics:
        tables += [_Statistics(recipe) for recipe in report["recipes"]]
    return tables


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
        table.add_row("full", megabytes(first["bytes_full"]), "1.0x", "", full_ms, "1.0x")
    for recipe in recipes:
        pooled = recipe["all"]
        table.add_row(
            escape(recipe["recipe"]),
            megabytes(recipe["bytes"]),
            f"{recipe['bytes_full'] / recipe['bytes']:.1f}x",
            f"{recipe['bits_per_weight']:.2f}",
            f"{recipe['ms_per_token']:.1f}",
            f"{recipe['ms_per_token_full'] / recipe['ms_per_token']:.1f}x",
            with_interval(pooled["kld_mean"], pooled["kld_mean_ci95"]),
            escape(recipe["worst_slice"]) if pooled["kld_mean"] else "",
            f"{100 * pooled['top1']:.1f}%",
            with_interval(pooled["ppl_ratio"], pooled["ppl_ratio_ci95"], decimals=3),
        )
    table.caption = (
        "KLD: divergence from the full model in nats a token, exact over the vocabulary. "
        f"± is half a 95 % interval. Text: {escape(report['text'])}{_decode_path(recipes)}"
    )
    return table


def _decode_path(recipes: Sequence[Report]) -> str:
    """Return a line on what decoding alone changes, or nothing where no text was long enough."""
    measured = {recipe["recipe"]: recipe["decode_path_kld"] for recipe in recipes}
    measured = {"full": recipes[0]["decode_path_kld_full"], **measured} if recipes else {}
    means = [f"{escape(name)} {significant(of['mean'])}" for name, of in measured.items() if of]
    return (
        f"\nDecoded token by token against read at once, KLD: {', '.join(means)}" if means else ""
    )


def _by_slice(report: Report) -> Table:
    table = _table("by slice, worst first")
    table.add_column("recipe", overflow="ellipsis", style="bold")
    table.add_column("slice", overflow="ellipsis")
    headers = ("tokens", "KLD mean", "KLD\np99", "KLD\nmax", "top-1 %", "ppl\nfull", "ppl ratio")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for recipe in report["recipes"]:
        label = escape(recipe["recipe"])
        for name, measured in recipe["slices"].items():
            table.add_row(
                label,
                escape(name),
                str(measured["tokens"]),
                with_interval(measured["kld_mean"], measured["kld_mean_ci95"]),
                significant(measured["kld_p99"]),
                significant(measured["kld_max"]),
                share(measured["top1"], measured["top1_ci95"]),
                significant(measured["ppl_full"]),
                with_interval(measured["ppl_ratio"], measured["ppl_ratio_ci95"], decimals=3),
            )
            label = ""
        table.add_section()
    return table


def _on_vllm(recipes: Sequence[Report]) -> Table:
    table = _table("as vLLM runs it")
    table.add_column(HEADERS[0], overflow="ellipsis", style="bold")
    table.add_column(HEADERS[1], overflow="ellipsis")
    for header in HEADERS[2:]:
        table.add_column(header, justify="right", no_wrap=True)
    for recipe in recipes:
        label = escape(recipe["recipe"])
        for name, *numbers in vllm_rows(recipe):
            table.add_row(label, escape(name), *numbers)
            label = ""
        table.add_section()
    table.caption = escape(vllm_note(recipes))
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=0, caption_justify="left"
    )


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Every statistic of one recipe, in as many tables as the terminal's width asks for."""

    recipe: Mapping[str, Any]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        columns = {"all": self.recipe["all"], **self.recipe["slices"]}
        fitting = max(1, (options.max_width - _NAME_WIDTH) // _VALUE_WIDTH)
        names = list(columns)
        for start in range(0, len(names), fitting):
            table = _table(f"{escape(self.recipe['recipe'])}: all statistics, ± standard error")
            table.add_column("", no_wrap=True)
            chosen = names[start : start + fitting]
            for name in chosen:
                table.add_column(escape(name), justify="right", overflow="ellipsis", no_wrap=True)
            for group in GROUPS:
                for statistic in STATISTICS:
                    if statistic.group == group:
                        shown = [statistic.show(columns[name]) for name in chosen]
                        table.add_row(statistic.name, *shown)
                table.add_section()
            yield table
