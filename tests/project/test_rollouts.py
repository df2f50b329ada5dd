"""Templates for progressive delivery: metrics which exist, and the verdict of the canary's pods."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics.own import FAMILIES

DIRECTORY = Path(__file__).parents[2] / "deploy" / "rollouts"
FILES = sorted(DIRECTORY.glob("*.yaml"))
_ARGUMENT = re.compile(r"\{\{.*?\}\}")
_OF_THE_POD = {"pod", "namespace"}
"""What Prometheus adds to each series in a cluster."""
VALUES = {"model": "m", "variant": "int4", "target": "gw", "namespace": "ns"} | {
    "pod-template-hash": "6d5f"
}
CANARY, SECOND, STABLE = "gw-6d5f-aaaaa", "gw-6d5f-bbbbb", "gw-primary-9c8b-ccccc"
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
        assert labels <= {*families[name].label_names, *_OF_THE_POD}
        assert labels >= {"model", "variant", "pod"}


def rendered(query: str) -> str:
    """Return a query with the tool's values in it."""
    return _ARGUMENT.sub(
        lambda found: VALUES[re.split(r"[\s.{}]+", found[0].rstrip("} "))[-1]], query
    )


def series(pods: dict[str, dict[str, int]]) -> list[dict[str, str]]:
    """Return what pods say: an engine, and by slice its verdict."""
    found = []
    for pod, slices in pods.items():
        labels = f'model="m", variant="int4", namespace="ns", pod="{pod}"'
        found.append({"series": f"narrowgate_engine_up{{{labels}}}", "values": "1"})
        for name, state in slices.items():
            line = f'narrowgate_drift_state{{{labels}, slice="{name}"}}'
            found.append({"series": line, "values": str(state)})
    return found


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("pods", "value"),
    [
        ({CANARY: {"all": 1}, SECOND: {"all": 1}}, 1),
        ({CANARY: {"all": 1, "domain:code": 0}}, 1),
        ({CANARY: {"all": 0}, STABLE: {"all": 1}}, 0),
        ({CANARY: {"all": 1}, STABLE: {"all": 2}}, 1),
        ({CANARY: {"all": 1}, SECOND: {"all": 0}}, 0),
        ({CANARY: {"all": 1}, SECOND: {}}, 0),
        ({CANARY: {"all": 1}, SECOND: {"all": 3}}, 3),
        ({CANARY: {"all": 0}, SECOND: {"all": 3}}, 0),
        ({CANARY: {"all": 0, "domain:code": 2}, SECOND: {"all": 1}}, 2),
        ({CANARY: {"all": 2}, SECOND: {}}, 2),
        ({STABLE: {"all": 1}}, None),
    ],
)
def test_only_the_canarys_pods_decide(
    path: Path, pods: dict[str, dict[str, int]], value: int | None, tmp_path: Path
) -> None:
    """Ok takes all of them, drift any slice of one; what stable pods say does not count."""
    (query,) = queries(load(path))
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    asked = {"expr": rendered(query), "eval_time": "0m", "exp_samples": samples}
    test = {"input_series": series(pods), "promql_expr_test": [asked]}
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"tests": [test]}))
    command = ["promtool", "test", "rules", str(file)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
