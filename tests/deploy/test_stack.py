"""`make stack`: the real gateway, Prometheus and Alertmanager, started, asked and ended."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from deploy.stack.layout import Layout
from deploy.stack.running import run_stack
from deploy.stack.servers import Ports, Server, check_ports, make_servers
from gateway.errors import ChildFailed, SettingsError
from tests.deploy.image import ROOT
from tests.gateway.harness import eventually
from tests.ports import free_port

END_LIMIT_S = 90
DEAF = """
import signal
from http.server import HTTPServer, SimpleHTTPRequestHandler
signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", {port}), SimpleHTTPRequestHandler).serve_forever()
"""


@dataclass(frozen=True)
class Stack:
    """A running stack."""

    ports: Ports
    process: subprocess.Popen[str]
    printed: Path

    def ask_prometheus(self, path: str) -> Any:
        """Return the data of a reply of Prometheus' API."""
        url = f"http://127.0.0.1:{self.ports.prometheus}/api/v1/{path}"
        return httpx.get(url, trust_env=False).json()["data"]


@pytest.fixture(scope="module")
def stack(settings_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run the stack in front of an engine elsewhere; end it by Ctrl-C, which leaves nothing."""
    if shutil.which("prometheus") is None or shutil.which("prometheus-alertmanager") is None:
        pytest.skip("not installed (Debian: prometheus, prometheus-alertmanager)")
    home = tmp_path_factory.mktemp("home")
    ports = Ports(free_port(), free_port(), free_port())
    command = [sys.executable, "-m", "deploy.stack", "--port", str(ports.gateway)]
    command += ["--prometheus-port", str(ports.prometheus)]
    command += [
        "--alertmanager-port",
        str(ports.alertmanager),
        "--",
        "--config",
        str(settings_file),
    ]
    printed = home / "printed"
    with printed.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"NARROWGATE_HOME": str(home)},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    family: list[psutil.Process] = []
    try:
        eventually(lambda: "Ctrl-C ends all" in printed.read_text() or process.poll(), 120)
        assert process.poll() is None, printed.read_text()
        family = psutil.Process(process.pid).children(recursive=True)
        chat = {"model": "far", "messages": [{"role": "user", "content": "one"}]}
        url = f"http://127.0.0.1:{ports.gateway}/v1/chat/completions"
        assert httpx.post(url, json=chat, trust_env=False).status_code == 200
        yield Stack(ports, process, printed)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=END_LIMIT_S) == 0, printed.read_text()
        assert len(family) == 3
        assert not [each for each in family if each.is_running()]


def test_it_says_where_everything_is(stack: Stack) -> None:
    """The page, the API, Prometheus, Alertmanager and the logs are told, and the logs exist."""
    told = stack.printed.read_text()
    assert f"http://127.0.0.1:{stack.ports.gateway}/dashboard" in told
    assert f"http://127.0.0.1:{stack.ports.prometheus}\n" in told
    assert f"http://127.0.0.1:{stack.ports.alertmanager}\n" in told
    logs = Path(told.partition("logs, data ")[2].split()[0]) / "logs"
    assert {file.name for file in logs.iterdir()} == {"prometheus.log", "alertmanager.log"}


def test_prometheus_scrapes_all(stack: Stack) -> None:
    """Every job of the configuration has one target, and it is up."""

    def is_up() -> bool:
        found = stack.ask_prometheus("query?query=up")["result"]
        return {each["metric"]["job"]: each["value"][1] for each in found} == dict.fromkeys(
            ["narrowgate", "prometheus", "alertmanager"], "1"
        )

    eventually(is_up)


def test_prometheus_has_the_rules(stack: Stack) -> None:
    """The groups of rules that it runs are those of the repository, however many there are."""
    files = (ROOT / "grafana/rules").glob("*.yaml")
    groups = [
        group["name"] for file in files for group in yaml.safe_load(file.read_text())["groups"]
    ]
    found = stack.ask_prometheus("rules")["groups"]
    assert sorted(group["name"] for group in found) == sorted(groups)


def test_prometheus_knows_its_alertmanager(stack: Stack) -> None:
    """Alerts go to the Alertmanager of the stack."""
    (found,) = eventually(lambda: stack.ask_prometheus("alertmanagers")["activeAlertmanagers"])
    assert f"//127.0.0.1:{stack.ports.alertmanager}/" in found["url"]


def test_requests_are_counted_and_kept(stack: Stack) -> None:
    """The one chat through the gateway is in Prometheus after the next scrape."""
    query = 'query?query=sum(narrowgate_requests_total{model="far",outcome="ok"})'
    (found,) = eventually(lambda: stack.ask_prometheus(query)["result"])
    assert float(found["value"][1]) == 1


def test_exemplars_are_stored(stack: Stack) -> None:
    """Prometheus runs with the storage that keeps the trace ids of requests."""
    flags = stack.ask_prometheus("status/flags")
    assert "exemplar-storage" in flags["enable-feature"]
    assert "max_exemplars" in stack.ask_prometheus("status/config")["yaml"]


def test_missing_program_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Prometheus the one line says how to install it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="'prometheus' is not installed: run 'apt-get install"):
        make_servers(Ports(1, 2, 3), Layout(tmp_path), [])


def test_taken_port_is_refused_at_once() -> None:
    """A port that something listens on, or that is given twice, is told with its flag."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(
            SettingsError, match=f"port {taken} for prometheus is taken.*PROMETHEUS_PORT=N"
        ):
            check_ports([Server("prometheus", ("true",), taken, "/")])
    free = Server("gateway", ("true",), free_port(), "/")
    with pytest.raises(SettingsError, match="pass another --port, with make PORT=N"):
        check_ports([free, free])


def test_server_that_ends_is_told(tmp_path: Path) -> None:
    """One that ends by itself ends the others; its last words and its log are told."""
    log = tmp_path / "broken.log"
    broken = (sys.executable, "-c", "raise SystemExit('no room on the disk')")
    sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
    servers = [
        Server("sleeper", sleeper, free_port(), "/"),
        Server("broken", broken, free_port(), "/", log),
    ]
    before = psutil.Process().children()
    with pytest.raises(
        ChildFailed, match=r"broken ended with code 1: no room on the disk; its log"
    ):
        asyncio.run(run_stack(servers, lambda: None))
    assert psutil.Process().children() == before
    assert log.read_text() == "no room on the disk\n"


def test_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that ignores the first Ctrl-C is killed by the second."""
    monkeypatch.chdir(tmp_path)
    port = free_port()
    deaf = Server("deaf", (sys.executable, "-c", DEAF.format(port=port)), port, "/")

    def press_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = psutil.Process().children()
    assert asyncio.run(asyncio.wait_for(run_stack([deaf], press_twice), 60)) == 0
    assert psutil.Process().children() == before


def test_make_passes_its_variables_on() -> None:
    """`make stack` honours PORT, RECIPE, MODEL and the other ports; CONFIG replaces models."""

    def words(*variables: str) -> str:
        command = [
            "make",
            "--no-print-directory",
            "--dry-run",
            "--always-make",
            "stack",
            *variables,
        ]
        return (
            subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            .stdout.splitlines()[-1]
            .partition("deploy.stack ")[2]
            .strip()
        )

    ports = "--port 8123 --prometheus-port 9191 --alertmanager-port 9393"
    given = ["PORT=8123", "PROMETHEUS_PORT=9191", "ALERTMANAGER_PORT=9393"]
    assert words(*given, "RECIPE=int8", "MODEL=big") == f"{ports} -- --model big --recipe int8"
    assert words(*given, "CONFIG=my.yaml") == f"{ports} -- --config my.yaml"
