"""What a comparison looks like: tables, JSON, picture."""

import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compression.errors import ReportError
from compression.fidelity_statistics import STATISTICS
from compression.report.files import require_writable, write_json
from compression.report.page import render_page, write_page
from compression.report.picture import plot
from compression.report.tables import render_tables

SLICES = ("arithmetic", "chinese", "german", "english")


QUANTILES = {
    "max": 41.0, "p99_9": 20.0, "p99": 9.0, "p95": 4.0, "p90": 2.5, "p75": 1.5, "median": 0.4,
    "p25": 0.1, "p10": 0.02, "p5": 0.01, "p1": 0.001, "p0_1": 0.0001, "min": 0.0,
}  # fmt: skip


def measured(kld: float, *, tokens: int = 1523) -> dict[str, Any]:
    """Return the statistics of one slice."""
    values: dict[str, Any] = {
        "tokens": tokens,
        "ppl": 14.81,
        "ppl_full": 14.2,
        "ln_ppl_correlation": 0.987,
        "ln_ppl_ratio": 0.0423,
        "ppl_ratio": 1.0432,
        "ppl_difference": 0.61,
        "kld_mean": kld,
        "delta_p_mean": -0.1 * kld,
        "delta_p_rms": 0.3 * kld,
        "top1": 0.921,
    }
    for level, factor in QUANTILES.items():
        values[f"kld_{level}"] = kld * factor
        values[f"delta_p_{level}"] = 0.1 * kld * (factor - 0.4)
    for statistic in STATISTICS:
        if statistic.has_error:
            values[f"{statistic.key}_se"] = 0.03 * abs(values[statistic.key])
    return values | {
        "kld_mean_ci95": [0.94 * kld, 1.06 * kld],
        "top1_ci95": [0.907, 0.935],
        "ppl_ratio_ci95": [1.0273, 1.0591],
    }


def recipe(name: str, size: int, kld: float, slices: tuple[str, ...] = SLICES) -> dict[str, Any]:
    """Return the part of a report about one recipe; the first slice is the worst."""
    return {
        "recipe": name,
        "recipe_digest": "ab" * 32,
        "bits_per_weight": 16 * size / 269_000_000,
        "bytes": size,
        "bytes_full": 269_000_000,
        "ms_per_token": 12.9,
        "ms_per_token_full": 24.13,
        "decode_path_kld": {"mean": 0.0021, "max": 0.031, "tokens": 192},
        "decode_path_kld_full": {"mean": 0.0013, "max": 0.022, "tokens": 192},
        "slices": {key: measured(kld * (len(slices) - index)) for index, key in enumerate(slices)},
        "all": measured(2 * kld, tokens=6092),
        "worst_slice": slices[0],
    }


def report(*recipes: dict[str, Any], model: str = "smollm2") -> dict[str, Any]:
    """Return a whole report."""
    return {
        "model": model,
        "text": "built-in",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "narrowgate compare --model smollm2",
        "window_tokens": 512,
        "decode": {"context_tokens": 128, "steps": 64},
        "confidence": {
            "level": 0.95,
            "method": "bootstrap",
            "block_tokens": 32,
            "resamples": 1000,
            "seed": 0,
        },
        "recipes": list(recipes),
        "machine": {
            "cpu": "a processor",
            "cores": 2,
            "threads": 2,
            "memory_gb": 25.2,
            "system": "Linux 6",
            "torch": "2.13.0",
            "versions": {"python": "3.11", "torch": "2.13.0"},
            "kernels": {"full": {"none": "bf16xf32"}, "int4": {"int4-g32": "int4x16"}},
        },
        "seconds": 61.2,
    }


def rendered(shown: dict[str, Any], width: int, *, statistics: bool = False) -> list[list[str]]:
    """Return the lines of each table at a terminal's width."""
    tables = []
    for table in render_tables(shown, statistics=statistics):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        with console.capture() as capture:
            console.print(table)
        tables.append([line.rstrip() for line in capture.get().splitlines()])
    return tables


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["int4", "a-recipe-with-a-rather-long-name.v2"])
def test_tables_fit_the_terminal(width: int, name: str) -> None:
    """Each recipe and each slice takes one line, and no number is cut."""
    shown = report(recipe("int8", 135_000_000, 0.00205), recipe(name, 84_100_000, 0.0566))
    summary, by_slice = rendered(shown, width)
    assert all(len(line) <= width for line in summary + by_slice)
    numbers = "84.1  3.2x   5.00  12.9  1.9x   0.113 ±6% arithmetic 92.1% 1.043 ±2%"
    assert sum(numbers in line for line in summary) == 1
    assert sum("0.00410 ±6%" in line for line in summary) == 1
    rows = [line for line in by_slice if "92.1 ±1.4" in line and "1.043 ±2%" in line]
    assert len(rows) == 2 * len(SLICES)
    (rule,) = (index for index, line in enumerate(summary) if line.startswith("─"))
    (caption,) = (index for index, line in enumerate(summary) if line.startswith("KLD:"))
    assert caption - rule - 1 == 3
    decoded = "Decoded token by token against read at once, KLD: full 0.00130, int8 0.00210"
    assert decoded in " ".join(line.strip() for line in summary)
    cut_names = [line for line in summary if "…" in line]
    assert len(cut_names) == (1 if width == 80 and len(name) > 10 else 0)


def test_slices_keep_the_order_of_the_report() -> None:
    """Slices stand in the report's order, which is worst first."""
    _, lines = rendered(report(recipe("int4", 84_000_000, 0.05)), 100)
    order = [name for line in lines for name in SLICES if re.search(rf"\b{name}\b", line)]
    assert order == list(SLICES)


def test_the_full_model_is_the_first_row() -> None:
    """The full model's size and speed stand above the recipes, once."""
    summary, _ = rendered(report(recipe("int4", 84_000_000, 0.05)), 100)
    rows = [line.split() for line in summary if re.match(r"full|int4", line)]
    assert rows[0] == ["full", "269", "1.0x", "24.1", "1.0x"]
    assert rows[1][0] == "int4"
    with_full, _ = rendered(report(recipe("full", 269_000_000, 0.0)), 100)
    assert sum(line.startswith("full ") for line in with_full) == 1


def test_names_are_not_markup() -> None:
    """Brackets in a model's, slice's or directory's name are shown as they are."""
    shown = report(recipe("int4", 84_000_000, 0.05, ("plain", "[red]x")), model="/m/[bold]y")
    shown["text"] = "/data/[blink]"
    summary, by_slice = rendered(shown, 120)
    assert "/m/[bold]y" in summary[0]
    assert any("/data/[blink]" in line for line in summary)
    assert any("[red]x" in line for line in by_slice)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.00021, "2.1e-04"), (0.0123456, "0.0123"), (1.5, "1.50"), (1e30, "1.0e+30")],
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    """Divergences of any size are readable and narrow."""
    _, by_slice = rendered(report(recipe("int4", 84_000_000, value, ("only",))), 140)
    assert any(re.search(rf"only +1523 +{re.escape(text)}( ±6%)? ", line) for line in by_slice)


def test_tables_need_neither_torch_nor_matplotlib() -> None:
    """The gateway's process can show a report without heavy imports."""
    code = (
        "import sys, compression.report.tables, compression.report.page;"
        "print(sorted({'torch', 'matplotlib', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "shown",
    [
        report(recipe("int8", 135_000_000, 0.002), recipe("int4", 84_000_000, 0.06)),
        report(recipe("full", 269_000_000, 0.0)),
        report(recipe("int4", 84_000_000, 0.06, ("$x", "y_$^"))),
    ],
    ids=["two recipes", "exactly zero", "mathematical signs in names"],
)
def test_picture_is_written_whole(tmp_path: Path, shown: dict[str, Any]) -> None:
    """The picture is a PNG of readable size, and nothing lies beside it."""
    path = tmp_path / "fidelity.png"
    plot(shown, path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") >= 1200
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    """A report replaces the older file, and reads back as it was."""
    path = tmp_path / "report.json"
    path.write_text("old")
    shown = report(recipe("int4", 84_000_000, 0.05))
    write_json(shown, path)
    assert json.loads(path.read_text(encoding="utf-8")) == shown
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("width", "count"), [(80, 3), (160, 1)])
def test_all_statistics_in_a_terminal(width: int, count: int) -> None:
    """Each recipe has every line of llama.cpp for all its slices, in tables that fit."""
    shown = report(recipe("int4", 84_100_000, 0.0566))
    tables = rendered(shown, width, statistics=True)
    assert len(tables) == 3
    lines = tables[2]
    assert all(len(line) <= width for line in lines)
    for statistic in STATISTICS:
        rows = [line for line in lines if line.startswith(f"{statistic.name} ")]
        assert len(rows) == count
        assert statistic.show(shown["recipes"][0]["all"]) in rows[0]
    tops = [line for line in lines if "statistics" not in line and "%" not in line]
    headers = [name for line in tops for name in ("all", *SLICES) if f" {name}" in line]
    assert headers == ["all", *SLICES]


class Page(HTMLParser):
    """The visible text, the attributes and the balance of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_is_complete_and_alone() -> None:
    """The page has every figure, balanced elements, and nothing from elsewhere."""
    shown = report(recipe("int8", 135_000_000, 0.00205), recipe("int4", 84_100_000, 0.0566))
    text = render_page(shown)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "onclick"} & {name for name, _ in page.attributes}
    assert not re.search(r"https?:|url\(|@import", text)
    assert "prefers-color-scheme: dark" in text
    assert page.tags.count("svg") == 3 + 2
    assert page.tags.count("details") == 2
    for statistic in STATISTICS:
        assert page.words.count(statistic.name) == 3
        assert statistic.show(shown["recipes"][1]["slices"]["german"]) in page.words
    for words in ("0.113", "0.106 to 0.120", "90.7 % to 93.5 %", "1.0273 to 1.0591", "max 0.0310"):
        assert words in page.words, words
    assert "narrowgate compare --model smollm2" in page.words
    assert "int4-g32: int4x16" in page.words
    drawn = [
        number for _, value in page.attributes for number in re.findall(r"nan|inf", value or "")
    ]
    assert drawn == []


def test_page_escapes_what_it_shows() -> None:
    """Names, paths and commands can neither open an element nor leave an attribute."""
    evil = "<script>alert('x')</script>\"'&"
    shown = report(recipe(evil, 84_000_000, 0.05, (evil, "plain")), model=evil)
    shown |= {"text": evil, "command": evil}
    shown["machine"] |= {"cpu": evil, "kernels": {evil: {evil: evil}}}
    page = Page(render_page(shown))
    assert "script" not in page.tags
    assert sum("<script>" in words for words in page.words) >= 6


def test_page_of_the_full_model_itself() -> None:
    """Where nothing differs, all drawings are still made."""
    same = recipe("full", 269_000_000, 0.0)
    same |= {"recipe_digest": None, "decode_path_kld": None, "decode_path_kld_full": None}
    page = Page(render_page(report(same)))
    assert "full: exactly 0" in page.words


def test_page_is_written_whole(tmp_path: Path) -> None:
    """The file has the page and nothing is left beside it."""
    shown = report(recipe("int4", 84_000_000, 0.05))
    write_page(shown, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_page(shown)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_failed_writing_keeps_the_old_file(tmp_path: Path) -> None:
    """When writing fails, one line says so and the older file is as it was."""
    path = tmp_path / "gone" / "report.json"
    with pytest.raises(ReportError, match=r"cannot write .*report.json': No such file"):
        write_json(report(), path)
    kept = tmp_path / "kept.json"
    kept.write_text("old")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json({"value": float("nan")}, kept)
    assert kept.read_text() == "old"
    assert list(tmp_path.iterdir()) == [kept]


def test_unwritable_files_are_refused_early(tmp_path: Path) -> None:
    """What is no regular file, or could not be made one, is refused before the work."""
    kept = tmp_path / "kept.json"
    kept.write_text("old")
    os.mkfifo(tmp_path / "pipe")
    require_writable({"--json": tmp_path / "new.json", "--html": kept, "--png": None})
    with pytest.raises(ReportError, match=r"--json .* is a directory"):
        require_writable({"--json": tmp_path})
    with pytest.raises(ReportError, match=r"--png .*does not exist"):
        require_writable({"--png": tmp_path / "no" / "x.png"})
    with pytest.raises(ReportError, match=r"--json .* is no regular file"):
        require_writable({"--json": tmp_path / "pipe"})
    with pytest.raises(ReportError, match=r"--json '/proc/x.json': '/proc' is not writable"):
        require_writable({"--json": Path("/proc/x.json")})
    assert sorted(tmp_path.iterdir()) == [kept, tmp_path / "pipe"]
    assert kept.read_text() == "old"


def test_two_options_do_not_name_one_file(tmp_path: Path) -> None:
    """One would be lost under the other, by whatever name."""
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    with pytest.raises(ReportError, match=r"--png and --json name one file"):
        require_writable({"--json": tmp_path / "a.json", "--png": tmp_path / "link.json"})


def test_a_link_stays_one(tmp_path: Path) -> None:
    """What it leads to is written."""
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    write_json({"value": 1}, tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "a.json").read_text()) == {"value": 1}


def on_vllm(shown: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a recipe as vLLM ran it: twice as far as the embedded engine."""
    name, size = shown["recipe"], shown["bytes"]
    keys = ("slices", "all", "worst_slice")
    theirs, ours = recipe(name, size, 0.02), recipe(name, size, 0.01)
    return shown | {
        "vllm": {
            "version": "0.32.0",
            "estimator": "topk",
            "top": 256,
            "kernels": {"W8A8<Int8>": "CPUKernel"},
            "numerics": {"W8A8<Int8>": "W8A8"},
            **{key: theirs[key] for key in keys},
            "embedded": {key: ours[key] for key in keys},
        }
    }


@pytest.mark.parametrize("width", [80, 120])
def test_what_vllm_ran_has_a_table_more(width: int) -> None:
    """One line for all text and one a slice, both engines beside each other, uncut."""
    shown = report(on_vllm(recipe("int8", 135_000_000, 0.011)))
    *_, table = rendered(shown, width)
    assert all(len(line) <= width for line in table)
    rows = [line.split() for line in table if "92.1%" in line]
    assert " ".join(rows[0]) == "int8 all 6092 0.0400 ±6% 0.0200 ±6% 0.0220 92.1% 92.1%"
    assert [row[0] for row in rows[1:]] == list(SLICES)
    note = " ".join(line.strip() for line in table)
    assert "256 tokens that vLLM 0.32.0 finds likeliest" in note
    assert "int8: W8A8<Int8> on CPUKernel" in note
    assert len(rendered(report(recipe("int8", 135_000_000, 0.011)), width)) == 2


def test_the_page_has_what_vllm_ran() -> None:
    """A section of its own, escaped; without vLLM there is none."""
    plain = report(recipe("int8", 135_000_000, 0.011))
    page = render_page(report(on_vllm(recipe("int8", 135_000_000, 0.011))))
    assert "As vLLM runs it" in page
    assert "W8A8&lt;Int8&gt; on CPUKernel" in page
    assert "As vLLM runs it" not in render_page(plain)
