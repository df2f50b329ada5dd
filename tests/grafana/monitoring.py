"""Debian's Prometheus and Alertmanager as children of a test, on free ports of loopback."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.gateway.harness import eventually
from tests.ports import free_port

RULES = Path(__file__).parents[2] / "grafana" / "rules"
DEPLOYED = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"


def _program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed: apt-get install {names[0]}")
    return found


class Prometheus:
    """One Prometheus that asks every second."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def query(self, expr: str, at: float | None = None) -> list[dict[str, Any]]:
        """Return the samples of an instant query, and fail with its error."""
        fields = {"query": expr} | ({} if at is None else {"time": f"{at:.3f}"})
        return self._result("/api/v1/query", fields)

    def query_range(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return the lines of a range query at steps of a second."""
        fields = {"query": expr, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": "1"}
        return self._result("/api/v1/query_range", fields)

    def value(self, expr: str, at: float | None = None) -> float:
        """Return the one value that a query has."""
        (found,) = self.query(expr, at)
        return float(found["value"][1])

    def get(self, path: str) -> Any:
        """Return the data of an answer."""
        reply = self.http.get(path).json()
        assert reply["status"] == "success", reply
        return reply["data"]

    def _result(self, path: str, fields: Mapping[str, str]) -> list[dict[str, Any]]:
        reply = self.http.post(path, data=dict(fields)).json()
        assert reply["status"] == "success", f"{reply.get('error')}: {fields['query']}"
        result: list[dict[str, Any]] = reply["data"]["result"]
        return result


@contextmanager
def prometheus(
    directory: Path, target: int, *, rules: Path = RULES, alertmanager: int | None = None
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes one gateway's port and evaluates the rules."""
    receivers = [] if alertmanager is None else [f"127.0.0.1:{alertmanager}"]
    deployed = yaml.safe_load(DEPLOYED.read_text())
    config = {
        "global": {
            "scrape_interval": "1s",
            "scrape_timeout": "1s",
            "evaluation_interval": "1s",
            "external_labels": deployed["global"]["external_labels"],
        },
        "rule_files": [f"{rules}/*.yaml"],
        "alerting": {
            "alert_relabel_configs": deployed["alerting"]["alert_relabel_configs"],
            "alertmanagers": [{"static_configs": [{"targets": receivers}]}],
        },
        "scrape_configs": [
            {
                "job_name": "narrowgate",
                "static_configs": [{"targets": [f"127.0.0.1:{target}"]}],
            }
        ],
    }
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    port = free_port()
    command = [_program("prometheus"), f"--config.file={path}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={directory}/data", f"--web.listen-address=127.0.0.1:{port}"]
    command += ["--enable-feature=exemplar-storage,expand-external-labels"]
    with (
        _running(command, directory / "prometheus.log", f"http://127.0.0.1:{port}") as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        yield Prometheus(http)


@contextmanager
def alertmanager(directory: Path, config: Mapping[str, Any]) -> Iterator[int]:
    """Run an Alertmanager and return its port."""
    path = directory / "alertmanager.yml"
    path.write_text(yaml.safe_dump(dict(config)))
    port = free_port()
    command = [_program("prometheus-alertmanager", "alertmanager"), f"--config.file={path}"]
    command += [f"--storage.path={directory}/alerts", "--cluster.listen-address="]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with _running(command, directory / "alertmanager.log", f"http://127.0.0.1:{port}"):
        yield port


@contextmanager
def _running(command: Sequence[str], log: Path, url: str) -> Iterator[str]:
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: process.poll() is not None or _is_ready(url))
        assert process.poll() is None, log.read_text()
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
