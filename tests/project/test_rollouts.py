"""Templates for progressive delivery: valid YAML that asks for metrics which exist."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics import FAMILIES

DIRECTORY = Path(__file__).parents[2] / "deploy" / "rollouts"
FILES = sorted(DIRECTORY.glob("*.yaml"))
_ARGUMENT = re.compile(r"\{\{.*?\}\}")
_SELECTOR = re.compile(r"(narrowgate_\w+)\{([^}]*)\}")


def load(path: Path) -> dict[str, Any]:
    """Return a template."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def queries(template: dict[str, Any]) -> list[str]:
    """Return every query of a template."""
    spec = template["spec"]
    if "query" in spec:
        return [spec["query"]]
    return [each["provider"]["prometheus"]["query"] for each in spec["metrics"]]


def test_both_tools_have_a_template() -> None:
    """Argo Rollouts and Flagger."""
    assert [load(path)["kind"] for path in FILES] == ["AnalysisTemplate", "MetricTemplate"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_queries_name_what_there_is(path: Path) -> None:
    """Each family is in the gateway's table, with each label that is asked for."""
    families = {f"narrowgate_{family.name}": family for family in FAMILIES}
    found = [
        pair
        for query in queries(load(path))
        for pair in _SELECTOR.findall(_ARGUMENT.sub("x", query))
    ]
    assert found
    for name, selector in found:
        labels = set(re.findall(r"(\w+)=", selector))
        assert labels <= set(families[name].label_names)
        assert labels >= {"model", "variant"}
