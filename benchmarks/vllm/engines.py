"""The gateway over vLLM engines of the demo model, and what can be asked of both."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.gateway.ways import narrowgate

ALIAS = "m"
RECIPE = "w8a8"
STREAMS = 16
MORE = {"ignore_eos": True, "temperature": 0}
"""Every answer has its full length, whoever serves it."""


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway whose engines are vLLM's."""

    url: str
    gateway: psutil.Process

    def replicas(self) -> list[dict[str, Any]]:
        """Return the replicas as the gateway sees them."""
        listed = httpx.get(f"{self.url}/admin/models").json()
        (model,) = listed["data"] if isinstance(listed, dict) else listed
        found: list[dict[str, Any]] = model["replicas"]
        return found

    def server_of(self, url: str) -> psutil.Process:
        """Return the API server process of the engine at an address."""
        port = f"--port={httpx.URL(url).port}"
        below = self.gateway.children(recursive=True)
        (found,) = (each for each in below if port in _words(each))
        return found

    def let_go_of(self, url: str) -> None:
        """Let every process and thread of the engine at an address run on all cores."""
        server = self.server_of(url)
        for process in (server, *server.children(recursive=True)):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, os.sched_getaffinity(0))

    def processor_s(self) -> dict[str, float]:
        """Return the processor time that has been used so far, by what processes do.

        ``others`` have nothing to do with this; what they take is missing here.
        """
        used = {
            "gateway": _used_s(self.gateway),
            "clients": _used_s(psutil.Process()),
            "workers": 0.0,
            "servers": 0.0,
        }
        for process in self.gateway.children(recursive=True):
            # vLLM's worker computes; its API server and its core write, schedule and wait.
            is_worker = "Worker" in " ".join(_words(process))
            used["workers" if is_worker else "servers"] += _used_s(process)
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - machine.iowait - machine.guest - machine.guest_nice
        return used | {"others": busy - sum(used.values())}


@contextmanager
def served(directory: Path, *, replicas: int, threads: int | None = None) -> Iterator[Served]:
    """Serve the demo model's artifact by so many vLLM engines."""
    model: dict[str, object] = {
        "model": "smollm2",
        "recipe": RECIPE,
        "engine": "vllm",
        "replicas": replicas,
        "threads": threads,
        "max_model_len": 2048,
        "kv_cache_memory_bytes": "1GiB",
        "extra_parameters": ["ignore_eos"],
        "vllm_options": {"enforce-eager": True},
    }
    settings: dict[str, object] = {"models": {ALIAS: model}}
    with narrowgate(settings, directory) as way:
        yield Served(way.url, way.processes[0])


@contextmanager
def in_front_of(url: str, directory: Path) -> Iterator[str]:
    """Run a gateway that reaches the engine at an address; yield its own address."""
    model: dict[str, object] = {
        "model": f"{ALIAS}@{RECIPE}",
        "recipe": RECIPE,
        "engine": "vllm",
        "urls": [url],
        "extra_parameters": ["ignore_eos"],
    }
    with narrowgate({"models": {ALIAS: model}}, directory) as way:
        yield way.url


def _used_s(process: psutil.Process) -> float:
    try:
        return sum(process.cpu_times()[:2])
    except psutil.Error:
        return 0.0


def _words(process: psutil.Process) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return found
