"""The ways to the scripted engine: direct, through Narrowgate, LiteLLM's proxy, vllm-router."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from benchmarks.gateway.scripted_engine import NAME
from benchmarks.peers import environments
from benchmarks.peers.environments import WORK, Environment
from gateway.backends.embedded import free_port

START_LIMIT_S = 120.0
PACE_MS = 50.0


@dataclass(frozen=True, slots=True)
class Way:
    """An address that leads to the engine, and the processes on the way."""

    name: str
    url: str
    processes: tuple[psutil.Process, ...]

    def cpu_s(self) -> float:
        """Return the processor time that the processes on the way have used."""
        return sum(sum(each.cpu_times()[:2]) for each in self.processes)

    def resident_mb(self) -> float:
        """Return the memory that they hold."""
        return sum(each.memory_info().rss for each in self.processes) / 1e6


@contextmanager
def scripted_engine(pace_ms: float = PACE_MS) -> Iterator[str]:
    """Run the engine and yield its address."""
    port = free_port()
    words = ["-m", "benchmarks.gateway.scripted_engine", "--port", str(port)]
    with _child([sys.executable, *words, "--pace-ms", str(pace_ms)], port, "/health") as way:
        yield way.url


@contextmanager
def narrowgate(settings: dict[str, object], directory: Path) -> Iterator[Way]:
    """Run our gateway with these settings."""
    port = free_port()
    file = directory / f"narrowgate-{port}.yaml"
    file.write_text(json.dumps({"port": port, **settings}), encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(file)]
    with _child(command, port, "/ready") as way:
        yield Way("narrowgate", way.url, way.processes[:1])  # engines are not the gateway


@contextmanager
def litellm(engine: str, directory: Path) -> Iterator[Way]:
    """Run LiteLLM's proxy with one worker."""
    port = free_port()
    environment = Environment("litellm", WORK)
    environment.ensure()
    parameters = {"model": f"openai/{NAME}", "api_base": f"{engine}/v1", "api_key": "none"}
    file = directory / "litellm.yaml"
    models = [{"model_name": NAME, "litellm_params": parameters}]
    general = {"dangerously_permit_weak_or_unset_master_key": True}  # nobody has a key here
    config = {"model_list": models, "general_settings": general}
    file.write_text(json.dumps(config), encoding="utf-8")
    tool = environment.python.parent / "litellm"
    words = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    with _child([str(tool), *words, "--telemetry", "False"], port, "/health/liveliness") as way:
        yield Way("litellm", way.url, way.processes)


@contextmanager
def vllm_router(engine: str) -> Iterator[Way]:
    """Run vLLM's router."""
    port, metrics = free_port(), free_port()
    environment = Environment("router", WORK)
    environment.ensure()
    tool = environment.python.parent / "vllm-router"
    words = ["--worker-urls", engine, "--host", "127.0.0.1", "--port", str(port)]
    words += ["--prometheus-port", str(metrics), "--policy", "round_robin"]
    with _child([str(tool), *words], port, "/health") as way:
        yield Way("vllm-router", way.url, way.processes)


@contextmanager
def _child(command: list[str], port: int, path: str) -> Iterator[Way]:
    url = f"http://127.0.0.1:{port}"
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as child:
        try:
            _wait(f"{url}{path}", child)
            process = psutil.Process(child.pid)
            family = (process, *process.children(recursive=True))
            yield Way("direct", url, family)
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                child.kill()


def _wait(url: str, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        if child.poll() is not None:
            raise RuntimeError(f"{child.args!r} ended with code {child.returncode}")
        try:
            if httpx.get(url, timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"{url} was not ready after {START_LIMIT_S:g} s")


def peer_pins() -> list[str]:
    """Return the versions of the peers, as they are installed."""
    folder = Path(environments.__file__).parent
    files = [folder / f"requirements-{name}.txt" for name in ("litellm", "router")]
    return [line for file in files for line in file.read_text(encoding="utf-8").split()]


async def settle() -> None:
    """Let timers and sockets of an earlier run go."""
    await asyncio.sleep(0.5)
