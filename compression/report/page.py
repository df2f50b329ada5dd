"""A comparison as one HTML file: no script, nothing loaded from elsewhere, light and dark."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from compression.fidelity_statistics import GROUPS, STATISTICS
from compression.report.charts import (
    colour,
    draw_divergences,
    draw_frontier,
    draw_probabilities,
    draw_slices,
)
from compression.report.files import write_text
from compression.report.numbers import megabytes, significant
from compression.report.on_vllm import HEADERS, measured_on_vllm, vllm_note, vllm_rows

Report = Mapping[str, Any]

_HEADERS = (
    "recipe", "size, MB", "bits a weight", "ms a token", "KL divergence", "worst slice",
    "same top token", "perplexity ratio", "decode path",
)  # fmt: skip


def write_page(report: Report, path: Path) -> None:
    """Write the report as HTML, whole or not at all.

    Raises:
        ReportError: the file cannot be written.
    """
    write_text(render_page(report), path)


def render_page(report: Report) -> str:
    """Return the page; every name and text of the report is escaped."""
    recipes = report["recipes"]
    style = resources.files("compression.report").joinpath("page.css").read_text(encoding="utf-8")
    title = f"{report['model']}: compressed against full"
    tokens = recipes[0]["all"]["tokens"] if recipes else 0
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{tokens:,} predicted tokens in {len(recipes[0]["slices"])} slices of '
        f"text ({escape(report['text'])}), exact over the whole vocabulary; "
        f"{escape(_date(report['created']))}</p>",
        _summary(recipes),
        *_drawings(recipes),
        *_on_vllm(measured_on_vllm(report)),
        *_statistics(recipes),
        *_method(report),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _date(created: str) -> str:
    return created.replace("T", " ").replace("+00:00", " UTC")


def _summary(recipes: Sequence[Report]) -> str:
    rows = [_row(recipe, index) for index, recipe in enumerate(recipes)]
    if all(recipe["recipe"] != "full" for recipe in recipes):
        first = recipes[0]
        speed = f"{first['ms_per_token_full']:.1f}"
        decoding = _decode_path(first["decode_path_kld_full"])
        empty = ["" for _ in range(4)]
        rows.insert(0, ["full", megabytes(first["bytes_full"]), "", speed, *empty, decoding])
    return _table(_HEADERS, rows)


def _row(recipe: Report, index: int) -> list[str]:
    pooled = recipe["all"]
    worst = recipe["slices"][recipe["worst_slice"]]
    smaller = recipe["bytes_full"] / recipe["bytes"]
    faster = recipe["ms_per_token_full"] / recipe["ms_per_token"]
    return [
        f"{_key(index)}{escape(recipe['recipe'])}",
        f"{megabytes(recipe['bytes'])}<small>1/{smaller:.2f}</small>",
        f"{recipe['bits_per_weight']:.2f}",
        f"{recipe['ms_per_token']:.1f}<small>{faster:.2f} x as fast</small>",
        _interval(pooled, "kld_mean", significant),
        f"{escape(recipe['worst_slice'])}<small>{significant(worst['kld_mean'])}</small>",
        _interval(pooled, "top1", lambda value: f"{100 * value:.1f} %"),
        _interval(pooled, "ppl_ratio", lambda value: f"{value:.4f}"),
        _decode_path(recipe["decode_path_kld"]),
    ]


def _interval(pooled: Report, key: str, show: Callable[[float], str]) -> str:
    low, high = pooled[f"{key}_ci95"]
    return f"{show(pooled[key])}<small>{show(low)} to {show(high)}</small>"


def _decode_path(measured: Report | None) -> str:
    if measured is None:
        return ""
    return f"{significant(measured['mean'])}<small>max {significant(measured['max'])}</small>"


def _drawings(recipes: Sequence[Report]) -> list[str]:
    keys = [f"<span>{_key(i)}{escape(each['recipe'])}</span>" for i, each in enumerate(recipes)]
    legend = f'<div class="legend">{"".join(keys)}</div>'
    panels = [
        f"<figure><h3>{_key(index)}{escape(recipe['recipe'])}</h3>{draw_slices(recipe, index)}"
        "</figure>"
        for index, recipe in enumerate(recipes)
    ]
    return [
        "<h2>Quality against size</h2>",
        "<p>Large points: all text together. Small points: its slices, the worst uppermost.</p>",
        f"<figure>{draw_frontier(recipes)}</figure>",
        "<h2>By slice, worst first</h2>",
        "<p>Mean KL divergence from the full model in nats a token, with 95 % intervals. Each "
        "panel has its own scale.</p>",
        f'<div class="pair">{"".join(panels)}</div>',
        "<h2>How the divergence is distributed</h2>",
        "<p>A mean hides rare tokens that go far astray: look at the right end.</p>",
        f"<figure>{legend}{draw_divergences(recipes)}</figure>",
        "<h2>Change of the true token's probability (Δp)</h2>",
        "<p>Bands hold 50 %, 90 % and 99.8 % of tokens; the line is the median. Left of 0 the "
        "compressed model finds the text less likely than the full one does.</p>",
        f"<figure>{draw_probabilities(recipes)}</figure>",
    ]


def _on_vllm(recipes: Sequence[Report]) -> list[str]:
    if not recipes:
        return []
    rows = [[recipe["recipe"], *row] for recipe in recipes for row in vllm_rows(recipe)]
    return [
        "<h2>As vLLM runs it</h2>",
        f"<p>{escape(vllm_note(recipes))}</p>",
        _table(map(escape, HEADERS), [list(map(escape, row)) for row in rows]),
    ]


def _statistics(recipes: Sequence[Report]) -> list[str]:
    pooled = {recipe["recipe"]: recipe["all"] for recipe in recipes}
    each = [
        f"<details><summary>{_key(index)}{escape(recipe['recipe'])}, by slice</summary>"
        f"{_statistics_table(recipe['slices'])}</details>"
        for index, recipe in enumerate(recipes)
    ]
    return [
        "<h2>All statistics</h2>",
        "<p>Those of llama.cpp's <code>--kl-divergence</code> under its names: Q is the compressed "
        "model, base the full one; ± is a standard error that takes tokens as independent.</p>",
        _statistics_table(pooled),
        *each,
    ]


def _statistics_table(columns: Mapping[str, Report]) -> str:
    rows: list[list[str]] = []
    for group in GROUPS:
        rows.append([group])
        rows += [
            [f"<span title='{statistic.key}'>{escape(statistic.name)}</span>"]
            + [statistic.show(measured) for measured in columns.values()]
            for statistic in STATISTICS
            if statistic.group == group
        ]
    rows.append(["Tokens", *(f"{measured['tokens']:,}" for measured in columns.values())])
    return _table(["", *map(escape, columns)], rows, style="statistics")


def _method(report: Report) -> list[str]:
    machine, confidence, decode = report["machine"], report["confidence"], report["decode"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    facts = {
        "Processor": f"{machine['cpu']}; {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']} GB, {machine['system']}",
        "Versions": versions,
        "Text": f"{report['text']}, windows of {report['window_tokens']} tokens",
        "95 % intervals": f"{confidence['method']}; blocks of {confidence['block_tokens']} tokens, "
        f"{confidence['resamples']:,} resamples, seed {confidence['seed']}",
        "ms a token": f"median of {decode['steps']} steps after {decode['context_tokens']} tokens, "
        "one sequence, models in turn",
        "Decode path": "KL divergence between a model's logits read in one pass and its own logits "
        "decoded token by token, at the end of each slice's first window",
        "Took": f"{report['seconds']:.0f} s",
    }
    for name, kernels in machine["kernels"].items():
        facts[f"Kernels of {name}"] = ", ".join(f"{of}: {kernel}" for of, kernel in kernels.items())
    for recipe in report["recipes"]:
        facts[f"Digest of {recipe['recipe']}"] = (
            recipe["recipe_digest"] or "none: nothing is changed"
        )
    rows = [[escape(key), escape(value)] for key, value in facts.items()]
    return [
        "<h2>How this was measured</h2>",
        f"<pre>{escape(report['command'])}</pre>",
        _table([], rows, style="facts"),
    ]


def _key(index: int) -> str:
    return f'<span class="key {colour(index)}"></span>'


def _table(headers: Iterable[str], rows: Iterable[Sequence[str]], *, style: str = "") -> str:
    """Return a table of cells that are HTML already; a row of one cell heads a group."""
    head = "".join(f"<th>{header}</th>" for header in headers)
    body = []
    for row in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in row)
        body.append(f"<tr class='group'>{cells}</tr>" if len(row) == 1 else f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll"><table class="{style}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
