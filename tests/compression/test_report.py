"""What a comparison looks like: tables, JSON, picture."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compression.errors import ReportError
from compression.report import plot, render_tables, require_writable, write_json

SLICES = ("english", "german", "chinese", "arithmetic")


def measured(kld: float, *, tokens: int = 1523) -> dict[str, Any]:
    """Return the statistics of one slice."""
    return {
        "kld_mean": kld,
        "kld_mean_se": 0.03 * kld,
        "kld_p99": 9 * kld,
        "kld_max": 41 * kld,
        "top1": 0.921,
        "top1_se": 0.007,
        "ppl_ratio": 1.0432,
        "ppl_ratio_se": 0.0081,
        "ppl_full": 14.2,
        "tokens": tokens,
    }


def recipe(name: str, size: int, kld: float, slices: tuple[str, ...] = SLICES) -> dict[str, Any]:
    """Return the part of a report about one recipe; the last slice is the worst."""
    return {
        "recipe": name,
        "recipe_digest": "ab" * 32,
        "bits_per_weight": 16 * size / 269_000_000,
        "bytes": size,
        "bytes_full": 269_000_000,
        "ms_per_token": 12.9,
        "ms_per_token_full": 24.13,
        "slices": {key: measured(kld * (1 + index)) for index, key in enumerate(slices)},
        "all": measured(2 * kld, tokens=6092),
        "worst_slice": slices[-1],
    }


def report(*recipes: dict[str, Any], model: str = "smollm2") -> dict[str, Any]:
    """Return a whole report."""
    return {"model": model, "text": "built-in", "window_tokens": 512, "recipes": list(recipes)}


def rendered(shown: dict[str, Any], width: int) -> list[list[str]]:
    """Return the lines of each table at a terminal's width."""
    tables = []
    for table in render_tables(shown):
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
    assert len([line for line in summary if line]) <= 9
    cut_names = [line for line in summary if "…" in line]
    assert len(cut_names) == (1 if width == 80 and len(name) > 10 else 0)


def test_worst_slice_comes_first() -> None:
    """Slices are ordered from the worst to the best, whatever their order in the report."""
    _, lines = rendered(report(recipe("int4", 84_000_000, 0.05)), 100)
    order = [name for line in lines for name in SLICES if re.search(rf"\b{name}\b", line)]
    assert order == list(reversed(SLICES))


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
        "import sys, compression.report;"
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
    """A directory, or a file in a directory that does not exist, is refused before the work."""
    require_writable(tmp_path / "new.json", option="--json")
    with pytest.raises(ReportError, match=r"--json .* is a directory"):
        require_writable(tmp_path, option="--json")
    with pytest.raises(ReportError, match=r"--png .*does not exist"):
        require_writable(tmp_path / "no" / "x.png", option="--png")
