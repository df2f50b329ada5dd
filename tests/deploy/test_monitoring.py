"""Prometheus' and Alertmanager's configuration, held by their own checkers."""

import shutil
import subprocess
from collections.abc import Sequence

import pytest
import yaml

from tests.deploy.image import ROOT

PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
ALERTMANAGER = ROOT / "deploy/alertmanager/alertmanager.yml"


def checked(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a checker of Debian's packages."""
    program = shutil.which(words[0])
    if program is None:
        pytest.skip(f"{words[0]} is not installed (Debian: prometheus, prometheus-alertmanager)")
    return subprocess.run([program, *words[1:]], capture_output=True, text=True, check=False)


def test_promtool_accepts_it() -> None:
    """The configuration is valid, and so is every rule that it names."""
    found = checked(["promtool", "check", "config", str(PROMETHEUS)])
    assert found.returncode == 0, found.stdout + found.stderr
    for file in (ROOT / "grafana/rules").glob("*.yaml"):
        assert file.name in found.stdout


def test_amtool_accepts_it() -> None:
    """Alertmanager's configuration is valid."""
    found = checked(["amtool", "check-config", str(ALERTMANAGER)])
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
def test_each_severity_has_its_receiver(severity: str) -> None:
    """An alert is routed by its severity."""
    alert = [f"severity={severity}", "alertname=Any", "model=small"]
    command = ["amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}", *alert]
    assert checked(command).stdout.strip() == severity


def test_critical_silences_the_rest_of_its_own() -> None:
    """Warnings and news, and each rule asks both sides for the label that it compares."""
    rules = yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
    assert [rule["equal"] for rule in rules] == [["model"], ["instance"]]
    for rule in rules:
        has_label = f'{rule["equal"][0]} =~ ".+"'
        assert {"severity = critical", has_label} <= set(rule["source_matchers"])
        assert rule["target_matchers"] == ['severity =~ "warning|info"', has_label]
    assert 'model = ""' in rules[1]["source_matchers"]  # one model's trouble is not its gateway's
