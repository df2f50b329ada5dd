"""The README, executed: what its commands do without a server. test_readme.py has the others."""

import json
from pathlib import Path

import pytest

from tests.project.readme import ADDRESS, NUM_EXAMPLES, run, shell_examples

pytestmark = pytest.mark.real_model

RECIPES, BUILD, INSPECT, COMPARE = "recipes", "build", "inspect", "compare"
EXAMPLES = {
    each.split()[1]: each
    for each in shell_examples()
    if each.startswith("narrowgate ") and ADDRESS not in each
}


def test_no_example_is_left_out() -> None:
    """Each one is run here or against the demo, and none twice under one name."""
    assert list(EXAMPLES) == [RECIPES, BUILD, INSPECT, COMPARE]
    served = [each for each in shell_examples() if ADDRESS in each]
    assert len(served) + len(EXAMPLES) == len(shell_examples()) == NUM_EXAMPLES


def test_recipes(tmp_path: Path) -> None:
    """The presets are listed with what they make of the model."""
    assert "int8-gptq" in run(EXAMPLES[RECIPES], tmp_path)


def test_build_and_inspect(tmp_path: Path) -> None:
    """An artifact is built where it was asked for, and found whole."""
    run(EXAMPLES[BUILD], tmp_path)
    assert (tmp_path / "smollm2-int4/compression_manifest.json").exists()
    assert "int4" in run(EXAMPLES[INSPECT], tmp_path)


def test_compare(tmp_path: Path) -> None:
    """The comparison writes what it was asked for (on less text)."""
    run(f"{EXAMPLES[COMPARE]} --max-tokens 8", tmp_path)
    assert (tmp_path / "quality.png").stat().st_size > 10_000
    assert (tmp_path / "report.html").stat().st_size > 10_000
    report = json.loads((tmp_path / "report.json").read_text())
    assert [recipe["recipe"] for recipe in report["recipes"]] == ["int4", "int8"]
