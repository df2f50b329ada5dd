"""Embedded engines as processes of their own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from tests.ports import free_port

MODEL = "tiny@full"
START_LIMIT_S = 120.0


@dataclass(frozen=True)
class EngineProcess:
    """A started engine."""

    url: str
    process: subprocess.Popen[bytes]

    def client(self) -> openai.OpenAI:
        """Return the official client, without retries."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)


def command(directory: Path, port: int, *flags: str) -> list[str]:
    """Return the command line of the contract, and more flags."""
    arguments = ["--model", str(directory), "--served-model-name", MODEL, "--port", str(port)]
    return [sys.executable, "-m", "gateway.engine", *arguments, "--threads", "1", *flags]


@contextmanager
def started(directory: Path, *flags: str) -> Iterator[EngineProcess]:
    """Start an engine and wait until it is ready."""
    port = free_port()
    with subprocess.Popen(command(directory, port, *flags), stderr=subprocess.PIPE) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + START_LIMIT_S
            while not is_ready(url):
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < end, "the engine did not become ready"
                time.sleep(0.05)
            yield EngineProcess(url, process)
        finally:
            process.kill()


def is_ready(url: str) -> bool:
    """Return whether the engine answers with health."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
