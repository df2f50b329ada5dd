"""A `narrowgate serve` under measurement: started, timed from a client's side, stopped."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import psutil

READY_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Stream:
    """One streamed reply, as the client saw it."""

    first_token_s: float
    """From sending the request to the first content."""
    ms_per_token: float
    """Mean over the tokens after the first."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Served:
    """A running gateway."""

    base_url: str
    process: psutil.Process
    started: float
    """``time.perf_counter()`` at the moment of starting the command."""

    def stream(self, prompt: str, max_tokens: int) -> Stream:
        """Ask for one streamed greedy reply of exactly as many tokens as the model gives."""
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "temperature": 0,
            "max_tokens": max_tokens,
        }
        sent = time.perf_counter()
        with httpx.stream(
            "POST", f"{self.base_url}/v1/chat/completions", json=body, timeout=120
        ) as response:
            response.raise_for_status()
            arrivals = [
                time.perf_counter()
                for line in response.iter_lines()
                if line.startswith("data: {") and _has_content(line)
            ]
        span = arrivals[-1] - arrivals[0]
        return Stream(
            first_token_s=arrivals[0] - sent,
            ms_per_token=1e3 * span / (len(arrivals) - 1),
            tokens=len(arrivals),
        )

    def models(self) -> list[dict[str, object]]:
        """Return the gateway's list of models."""
        data: list[dict[str, object]] = httpx.get(f"{self.base_url}/v1/models").json()["data"]
        return data

    def resident_mb(self) -> dict[str, float]:
        """Return the resident memory of the gateway and of its children, in MB."""
        children = self.process.children(recursive=True)
        return {
            "gateway": self.process.memory_info().rss / 1e6,
            "engines": sum(child.memory_info().rss for child in children) / 1e6,
        }


def _has_content(line: str) -> bool:
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return bool(choices) and bool(choices[0]["delta"].get("content"))


@contextmanager
def serve(recipe: str) -> Iterator[Served]:
    """Start a gateway on a free port and wait until it can answer; stop it afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "gateway", "serve", "--model", "smollm2", "--recipe", recipe]
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *words, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        base_url = f"http://127.0.0.1:{port}"
        _wait_ready(base_url, child)
        yield Served(base_url, psutil.Process(child.pid), started)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(timeout=60)


def _wait_ready(base_url: str, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"narrowgate serve ended with code {child.returncode}")
        try:
            if httpx.get(f"{base_url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise TimeoutError("narrowgate serve was not ready in time")
