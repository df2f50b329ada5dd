"""An alert on its whole way: metrics, Prometheus, Alertmanager, the receiver of a person."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import start_http_server

from gateway.registry import Metrics
from grafana.alerting.files import alerts
from grafana.alerting.rule import PREFIX
from tests.gateway.harness import eventually
from tests.grafana.monitoring import RULES, alertmanager, prometheus
from tests.ports import free_port

CONFIG = Path(__file__).parents[2] / "deploy" / "alertmanager" / "alertmanager.yml"
WAIT_S = 60
QUICK = "1s"

Message = tuple[str, dict[str, Any]]
"""Where it was sent to, and what."""


@contextmanager
def receiver() -> Iterator[tuple[int, "Queue[Message]"]]:
    """Run what a person would read; return its port and what has come."""
    come: Queue[Message] = Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            come.put((self.path, json.loads(body)))

        def log_message(self, *args: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, come
        server.shutdown()
        thread.join()


def quick_config(port: int) -> dict[str, Any]:
    """Return the deployed configuration with a receiver of ours and without its patience."""
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    routes = [config["route"], *config["route"]["routes"]]
    for route in routes:
        route |= {"group_wait": QUICK, "group_interval": QUICK}
    for each in config["receivers"]:
        for hook in each["webhook_configs"]:
            hook["url"] = f"http://127.0.0.1:{port}/{each['name']}"
    return config


def quick_rules(directory: Path) -> Path:
    """Return a copy of the rules that waits for nothing."""
    for path in RULES.glob("*.yaml"):
        text = re.sub(r"^( *for:) \w+", rf"\1 {QUICK}", path.read_text(), flags=re.MULTILINE)
        (directory / path.name).write_text(text)
    return directory


def say(metrics: Metrics, model: str, place: str, state: int) -> None:
    """Set the verdict of a model's active variant."""
    gauges = metrics.gauges
    gauges["active_variant"].labels(model, "int4").set(1)
    gauges["drift_state"].labels(model, "int4", place).set(state)
    gauges["drift_alarm_mean_nats"].labels(model, "int4", place).set(0.31)
    gauges["drift_tolerance_nats"].labels(model, "int4", place).set(0.02)


def next_message(come: "Queue[Message]", path: str, status: str) -> dict[str, Any]:
    """Return the next message to a receiver with this status."""
    others: list[Any] = []
    while True:
        try:
            where, message = come.get(timeout=WAIT_S)
        except Empty:
            pytest.fail(f"nothing {status} came to {path}, only {others}")
        if (where, message["status"]) == (path, status):
            return message
        others.append((where, message["status"], message["groupLabels"]))


@pytest.fixture
def metrics() -> Iterator[tuple[Metrics, int]]:
    """Return a gateway's own registry, and the port where Prometheus finds it."""
    of_gateway = Metrics()
    port = free_port()
    server, thread = start_http_server(port, "127.0.0.1", of_gateway.registry)
    yield of_gateway, port
    server.shutdown()
    server.server_close()
    thread.join()


def states(manager: int) -> dict[tuple[str, str], str]:
    """Return what Alertmanager does with each alert, by name and model or else instance."""
    found = httpx.get(f"http://127.0.0.1:{manager}/api/v2/alerts").json()
    return {
        (
            each["labels"]["alertname"].removeprefix(PREFIX),
            each["labels"].get("model") or each["labels"]["instance"],
        ): each["status"]["state"]
        for each in found
    }


def test_what_is_held_back(tmp_path: Path) -> None:
    """Warnings of a critical model, or of a gateway that is down; of nothing else."""
    wanted = {
        ("GatewayDown", "a"): "active",
        ("MetricsCardinality", "a"): "suppressed",
        ("QueueStanding", "code"): "suppressed",  # at a
        ("ModelDrift", "chat"): "active",
        ("SliceDrift", "chat"): "suppressed",
        ("SliceDrift", "code"): "active",
        ("RateStoreFailing", "b"): "active",  # neither has a model, and it is of another gateway
        ("LadderStepped", "code"): "active",
    }
    subjects = {name: {"model": name} for name in ("chat", "code")}
    subjects |= {name: {"instance": name} for name in ("a", "b")}
    severities = {each.name: each.severity for each in alerts()}
    told = [
        {
            "labels": {
                "instance": "a" if name == "QueueStanding" else "b",
                "alertname": PREFIX + name,
                "severity": severities[name],
                **subjects[subject],
            }
        }
        for name, subject in wanted
    ]
    with receiver() as (hook, _), alertmanager(tmp_path, quick_config(hook)) as manager:
        url = f"http://127.0.0.1:{manager}/api/v2/alerts"
        httpx.post(url, json=told).raise_for_status()
        eventually(lambda: states(manager) == wanted, WAIT_S)


def test_a_drift_reaches_a_person(
    metrics: tuple[Metrics, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Critical with labels and links; its model's warnings held back, others' told; its end."""
    monkeypatch.setenv("GRAFANA_URL", "https://grafana.example.org")
    monkeypatch.setenv("RUNBOOKS_URL", "https://git.example.org/blob/main")
    registry, port = metrics
    say(registry, "chat", "all", 2)
    say(registry, "chat", "domain:code", 2)
    say(registry, "code", "turns:multi", 2)
    (tmp_path / "rules").mkdir()
    rules = quick_rules(tmp_path / "rules")
    with (
        receiver() as (hook, come),
        alertmanager(tmp_path, quick_config(hook)) as manager,
        prometheus(tmp_path, port, rules=rules, alertmanager=manager),
    ):
        critical = next_message(come, "/critical", "firing")
        assert critical["groupLabels"] == {"alertname": f"{PREFIX}ModelDrift", "model": "chat"}
        (alert,) = critical["alerts"]
        here = {"job": "narrowgate", "instance": f"127.0.0.1:{port}"}
        subject = {"model": "chat", "variant": "int4", "slice": "all"}
        named = {"alertname": f"{PREFIX}ModelDrift", "severity": "critical"}
        assert alert["labels"] == here | subject | named
        assert alert["annotations"] == {
            "summary": "A served variant answers differently from the full model.",
            "description": f"chat@int4 at 127.0.0.1:{port} drifts: when that was shown, the mean "
            "KL divergence since its tests began was 0.31 nats a token, tolerance 0.02.",
            "dashboard_url": "https://grafana.example.org/d/narrowgate-fidelity?var-model=chat",
            "runbook_url": f"https://git.example.org/blob/main/grafana/runbooks/{PREFIX}ModelDrift.md",
        }
        wanted = {
            ("ModelDrift", "chat"): "active",
            ("SliceDrift", "chat"): "suppressed",
            ("SliceDrift", "code"): "active",
        }
        eventually(lambda: states(manager) == wanted, WAIT_S)
        say(registry, "chat", "all", 1)
        resolved = next_message(come, "/critical", "resolved")
        assert resolved["groupLabels"] == critical["groupLabels"]
