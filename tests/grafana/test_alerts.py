"""The alerts, by promtool: each fires where it must, in these words, and is silent beside it."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.alerting.files import alerts, rule_files
from grafana.alerting.rule import PREFIX
from grafana.queries import all_queries, substituted
from tests.grafana.alert_case import HERE, MODEL, REPLICA, VARIANT, Case, series
from tests.grafana.engine_cases import engine_cases
from tests.grafana.fidelity_cases import fidelity_cases, verdict
from tests.grafana.service_cases import requests, service_cases, streams

RULES = Path(__file__).parents[2] / "grafana" / "rules"
CASES = (*service_cases(), *engine_cases(), *fidelity_cases())


ALERTS, ALL = ("alerts.yaml",), ("recording.yaml", "alerts.yaml")


def groups_of(name: str) -> list[dict[str, Any]]:
    """Return the groups of a rule file."""
    found: list[dict[str, Any]] = yaml.safe_load((RULES / name).read_text())["groups"]
    return found


def promtool(
    directory: Path,
    tests: Sequence[dict[str, Any]],
    names: Sequence[str] = ALERTS,
    every: str = "1m",
) -> None:
    """Run unit tests of rule files, and fail with what promtool says."""
    path = directory / "tests.yaml"
    groups = [group["name"] for name in names for group in groups_of(name)]
    fields = {
        "rule_files": [str(RULES / name) for name in names],
        "evaluation_interval": every,
        "group_eval_order": groups,  # else chance has it, and alerts may come before records
        "tests": list(tests),
    }
    path.write_text(yaml.safe_dump(fields, sort_keys=False))
    command = ["promtool", "test", "rules", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("name", sorted({case.alert for case in CASES}))
def test_alerts_fire_when_they_must(name: str, tmp_path: Path) -> None:
    """Labels and annotations to the letter; near misses stay silent."""
    names, every = (ALL, "5m") if "Burn" in name else (ALERTS, "1m")
    cases = [case.promtool() for case in CASES if case.alert == name]
    # Windows of hours and days take their time; they are looked at less often.
    promtool(tmp_path, cases, names, "30m" if "Slow" in name else every)


def test_every_alert_has_cases() -> None:
    """One that fires and one that does not, for each."""
    for kind in (True, False):
        covered = {case.alert for case in CASES if case.fires is kind}
        assert covered == {each.name for each in alerts()}


def test_health_is_silent(tmp_path: Path) -> None:
    """A gateway at work, with a good verdict and small faults, wakes nobody."""
    running = {
        series("up", HERE): "1x90",
        series("process_start_time_seconds", HERE): "-9000x90",
        series("scrape_samples_scraped", HERE): "900x90",
        series("narrowgate_engine_up", VARIANT): "1x90",
        series("narrowgate_model_state", VARIANT, state="ready"): "1x90",
        series("narrowgate_model_state", VARIANT, state="failed"): "0x90",
        series("narrowgate_engine_sequences_running", REPLICA): "3x90",
        series("narrowgate_engine_sequences_waiting", REPLICA): "0x90",
        series("narrowgate_engine_generated_tokens_total", REPLICA): "0+900x90",
        series("narrowgate_engine_kv_cache_usage_ratio", REPLICA): "0.95x90",
        series("narrowgate_engine_preemptions_total", REPLICA): "0x90",
        series("narrowgate_requests_waiting", MODEL): "0x90",
        series("narrowgate_shadow_candidates_total", MODEL): "0+1x90",
        series("narrowgate_shadow_scored_total", MODEL): "0+0.9x90",
        series("narrowgate_shadow_reference_up", MODEL): "1x90",
        series("narrowgate_shadow_reference_failures_total", MODEL): "1x90",
        series("narrowgate_probe_change_nats", VARIANT): "0.01x90",
        series("narrowgate_rate_store_failures_total", HERE): "0x90",
    }
    every = running | requests("0+90x90", "0+0.1x90") | streams("0+9x90", "0+9x90")
    checks = [
        {"eval_time": "85m", "alertname": each.full_name, "exp_alerts": []} for each in alerts()
    ]
    inputs = [
        {"series": name, "values": values} for name, values in (every | verdict("1x90")).items()
    ]
    promtool(
        tmp_path, [{"interval": "1m", "input_series": inputs, "alert_rule_test": checks}], ALL, "5m"
    )


def test_nothing_at_all_is_one_alert(tmp_path: Path) -> None:
    """Series that are not there raise no alarm but that the gateway is not there."""
    silent = [
        {"eval_time": "30m", "alertname": each.full_name, "exp_alerts": []}
        for each in alerts()
        if each.name != "GatewayDown"
    ]
    promtool(tmp_path, [{"interval": "1m", "input_series": [], "alert_rule_test": silent}])


def test_the_files_are_made_of_the_table() -> None:
    """Nobody wrote into them by hand, and no other rule file lies there."""
    found = {path.name: path.read_text(encoding="utf-8") for path in RULES.iterdir()}
    assert found == rule_files(), "run python -m grafana"


def test_a_first_failure_is_seen_in_its_panel(tmp_path: Path) -> None:
    """One failure whose series begins with it, and failures before and after a restart."""
    (query,) = (each for each in all_queries() if each.panel == "Failed requests")
    for failed, share in (("_x20 1x10", 1 / 21), ("_x10 0 20 _ _ _ 2x15", 22 / 42)):
        inputs = [
            {"series": name, "values": values}
            for name, values in requests("0x10 10x20", failed).items()
        ]
        expr = substituted(query.expr, range="25m")
        promtool(
            tmp_path,
            [
                {
                    "interval": "1m",
                    "input_series": inputs,
                    "promql_expr_test": [
                        {
                            "expr": f"abs({expr} - {share}) < bool 0.02",
                            "eval_time": "30m",
                            "exp_samples": [{"labels": '{model="chat"}', "value": 1}],
                        }
                    ],
                }
            ],
        )


def test_what_top_k_would_have_found_is_beside_the_exact_mean(tmp_path: Path) -> None:
    """Of the same requests, and nothing where scores are by top-k."""
    here = HERE | {"model": "chat", "variant": "int4"}
    sums, bounds = (f"narrowgate_fidelity_kl_{name}nats_total" for name in ("", "bound_"))
    exact, topk = (here | {"slice": name} for name in ("domain:code", "all"))
    inputs = {
        series(sums, exact, estimator="exact"): "0+0.08x30",
        series(bounds, exact): "0+0.06x30",
        series(sums, topk, estimator="topk"): "0+1x30",
    } | {series("narrowgate_fidelity_requests_total", labels): "0+2x30" for labels in (exact, topk)}
    whose = '{model="chat", variant="int4", slice="%s"}'
    wanted = [
        {whose % "domain:code": 0.04, whose % "all": 0.5},
        {whose % "domain:code": 0.03},
    ]
    title = "Mean, its bounds, its tolerance"
    queries = [each for each in all_queries() if each.panel == title]
    tests = [
        {
            "expr": f"round({substituted(query.expr, rate_interval='10m')}, 0.001)",
            "eval_time": "25m",
            "exp_samples": [{"labels": key, "value": value} for key, value in found.items()],
        }
        for query, found in zip(queries, wanted, strict=False)
    ]
    samples = [{"series": name, "values": values} for name, values in inputs.items()]
    promtool(tmp_path, [{"interval": "1m", "input_series": samples, "promql_expr_test": tests}])


def test_free_runs_are_told_apart(tmp_path: Path) -> None:
    """Panels show runs by result, failures by side and check, and tokens of a compared run."""
    labels = HERE | {"model": "chat", "variant": "int4"}
    runs, checks, tokens = (
        f"narrowgate_fidelity_free_run{name}_total" for name in ("s", "_checks", "_tokens")
    )
    refusal = labels | {"check": "refusal", "side": "variant"}
    inputs = {
        series(runs, labels, result="compared"): "0+2x30",
        series(runs, labels, result="busy"): "0+4x30",
        series(checks, refusal, result="failed"): "0+1x30",
        series(checks, refusal, result="ok"): "0+3x30",
        series(checks, refusal | {"side": "full"}, result="ok"): "0+4x30",
        series(tokens, labels, side="variant"): "0+60x30",
        series(tokens, labels, side="full"): "0+30x30",
    }
    who = '{model="chat", variant="int4", side="%s"}'
    wanted: dict[str, dict[str, float]] = {
        "Free runs, by result": {'{result="compared"}': 2 / 60, '{result="busy"}': 4 / 60},
        "Failed checks of both answers": {
            (who % "variant").replace("}", ', check="refusal"}'): 0.25,
            (who % "full").replace("}", ', check="refusal"}'): 0,
        },
        "Length of both answers": {who % "variant": 30, who % "full": 15},
    }
    tests = [
        {
            "expr": substituted(query.expr, rate_interval="10m"),
            "eval_time": "25m",
            "exp_samples": [{"labels": key, "value": value} for key, value in found.items()],
        }
        for query in all_queries()
        if (found := wanted.get(query.panel))
    ]
    assert len(tests) == len(wanted)
    samples = [{"series": name, "values": values} for name, values in inputs.items()]
    promtool(tmp_path, [{"interval": "1m", "input_series": samples, "promql_expr_test": tests}])


def test_long_windows_are_read_seldom() -> None:
    """Rules over hours and days have an interval of their own, shorter than Prometheus' memory."""
    for group in groups_of("recording.yaml"):
        is_long = [rule["record"].endswith(("rate6h", "rate3d")) for rule in group["rules"]]
        assert set(is_long) == {"interval" in group}
        assert group.get("interval", "2m") == "2m"


def test_promtool_accepts_the_files() -> None:
    """Its checks and its lint find nothing."""
    command = ["promtool", "check", "rules", "--lint-fatal", *map(str, RULES.iterdir())]
    found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_alerts_are_written_alike(alert: Any) -> None:
    """One shared first word, a static summary, a reason for the wait, a link to a dashboard."""
    assert alert.full_name.startswith(PREFIX)
    assert "{{" not in alert.summary
    assert alert.summary.endswith(".")
    assert alert.description.endswith(".")
    assert alert.why
    assert alert.dashboard.partition("?")[0].startswith("/d/narrowgate-")


def test_the_readme_lists_them() -> None:
    """Every alert in the row of its severity."""
    text = (RULES.parents[1] / "README.md").read_text(encoding="utf-8")
    for severity in ("critical", "warning", "info"):
        (row,) = re.findall(rf"^\| {severity} \| (.*) \|$", text, re.MULTILINE)
        named = set(re.findall(r"`(\w+)`", row))
        assert named == {each.name for each in alerts() if each.severity == severity}


def test_links_lead_where_the_operator_says(tmp_path: Path) -> None:
    """External labels name both hosts; a variable that was not filled in counts as none."""
    case = next(each for each in CASES if each.alert == "ModelDrift" and each.fires)
    names = ("grafana_url", "runbooks_url")
    for label, grafana, runbooks in (
        ("https://x.example.org/a", "https://x.example.org/a", "https://x.example.org/a/"),
        ("${GRAFANA_URL}", "http://127.0.0.1:3000", ""),
    ):
        found = case.promtool() | {"external_labels": dict.fromkeys(names, label)}
        (expected,) = found["alert_rule_test"]
        (alert,) = expected["exp_alerts"]
        alert["exp_annotations"] |= {
            "dashboard_url": grafana + case.dashboard,
            "runbook_url": f"{runbooks}grafana/runbooks/NarrowgateModelDrift.md",
        }
        promtool(tmp_path, [found])


def test_case_names_are_alerts() -> None:
    """No case is of an alert that is gone."""
    assert {case.alert for case in CASES} <= {each.name for each in alerts()}


def test_a_case_can_fail(tmp_path: Path) -> None:
    """A case with a wrong word is noticed, so that silence means something."""
    case = next(each for each in CASES if each.fires)
    wrong = Case(case.alert, case.at, case.input, case.labels, "x", case.dashboard).promtool()
    with pytest.raises(AssertionError, match="FAILED"):
        promtool(tmp_path, [wrong])
