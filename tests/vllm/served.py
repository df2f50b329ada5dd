"""The real gateway over the real vLLM, as a process with an address."""

import asyncio
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.backends.vllm_facts import VllmFacts, default_python, find_python, probe
from gateway.errors import LoadRefused
from tests.gateway.harness import eventually
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 240.0
EAGER = {"enforce-eager": True}
"""Compilation takes vLLM minutes on a small machine."""
SMALL = {"kv_cache_memory_bytes": "512MiB", "max_model_len": 1024}
"""Several engines run at once."""
QUESTION = "What is the capital of France?"


@cache
def why_not() -> str | None:
    """Return why no vLLM can be started here; None if one can."""
    try:
        find_python(None)
    except LoadRefused as error:
        reason = default_python().parent.parent.with_suffix(".reason")
        return reason.read_text().splitlines()[-1] if reason.exists() else str(error)
    return None


def model(recipe: str, **fields: Any) -> dict[str, Any]:
    """Return the settings of the demo model on vLLM."""
    common = {"model": "smollm2", "engine": "vllm", "vllm_options": EAGER, **SMALL}
    return {**common, "recipe": recipe, **fields}


class Served:
    """A running gateway and what can be asked of it."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.url = url
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        """Return what it has logged so far."""
        return self._log.read_text(errors="replace")

    def card(self, name: str) -> dict[str, Any]:
        """Return what it says of one model."""
        found: dict[str, Any] = httpx.get(f"{self.url}/v1/models/{name}").json()
        return found

    def series(self, name: str) -> float:
        """Return the sum of a metric's samples on the gateway's page."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        found = [sample.value for sample in samples if sample.name == name]
        assert found, name
        return sum(found)

    def chat(self, question: str, **fields: Any) -> httpx.Response:
        """Return the greedy reply to one question."""
        body = {
            "model": "m",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 24,
        }
        reply = httpx.post(f"{self.url}/v1/chat/completions", json=body | fields, timeout=120)
        assert reply.status_code == 200, reply.text
        return reply

    def ask(self, question: str, **fields: Any) -> str:
        """Return the greedy answer to one question."""
        content: str = self.chat(question, **fields).json()["choices"][0]["message"]["content"]
        return content

    def complete(self, prompt: str) -> str:
        """Return the greedy end of a text."""
        body = {"model": "m", "prompt": prompt, "temperature": 0, "max_tokens": 4}
        reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        text: str = reply.json()["choices"][0]["text"]
        return text

    def processes(self) -> list[psutil.Process]:
        """Return every process below the gateway."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def replicas(self) -> list[dict[str, Any]]:
        """Return the replicas of the one model, as the gateway sees them."""
        (shown,) = httpx.get(f"{self.url}/admin/models").json()["data"]
        found: list[dict[str, Any]] = shown["replicas"]
        return found

    def engine_at(self, url: str) -> list[psutil.Process]:
        """Return the processes of the vLLM that listens there: its server, core and workers."""
        port = f"--port={httpx.URL(url).port}"
        (server,) = (each for each in self.processes() if port in each.cmdline())
        return [server, *server.children(recursive=True)]


@contextmanager
def served(directory: Path, settings: Mapping[str, Any]) -> Iterator[Served]:
    """Serve by these settings, wait until every model is ready, and stop."""
    file = directory / "settings.yaml"
    port = free_port()
    file.write_text(json.dumps({"port": port, **settings}))
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(file)]
    with running(command, port, directory / "log") as gateway:
        yield gateway


@contextmanager
def demo(directory: Path, recipe: str, *more: str) -> Iterator[Served]:
    """Serve as `make vllm-demo` does, with ``more`` flags behind."""
    port = free_port()
    words = ["vllm-demo", f"RECIPE={recipe}", f"PORT={port}", f"VENV={sys.prefix}"]
    told = subprocess.run(
        ["make", "--dry-run", *words],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (each for each in told.stdout.splitlines() if "narrowgate serve" in each)
    with running([*shlex.split(line), *more], port, directory / "log") as gateway:
        yield gateway


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[Served]:
    """Run a gateway, wait until every model is ready, and stop it."""
    if (reason := why_not()) is not None:
        pytest.skip(f"no vLLM: {reason}")
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            _wait(url, process, log)
            yield Served(url, process, log)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _wait(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    def is_ready() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the gateway ended:\n{log.read_text()[-4000:]}")
        try:
            return httpx.get(f"{url}/ready").status_code == 200
        except httpx.TransportError:
            return False

    eventually(is_ready, START_LIMIT_S)


def facts_here() -> VllmFacts:
    """Return what the installed vLLM says of itself; skips where there is none."""
    if (reason := why_not()) is not None:
        pytest.skip(f"no vLLM: {reason}")
    return asyncio.run(probe(find_python(None)))


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended; who must bury it may take its time."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
