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
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

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
        body = json.dumps(
            {
                "model": "smollm2",
                "messages": [{"role": "user", "content": prompt}],
                "stream": True,
                "temperature": 0,
                "max_tokens": max_tokens,
            }
        )
        url = urlsplit(self.base_url)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        arrivals: list[float] = []
        received = b""
        with socket.create_connection((url.hostname or "", url.port or 80), timeout=120) as link:
            sent = time.perf_counter()
            link.sendall((head + body).encode())
            # A client worth its processor time would share the two cores with what is measured:
            # this one only counts pieces of content.
            while b"data: [DONE]" not in received[-64:]:
                piece = link.recv(65536)
                if not piece or received[:12] not in (b"", b"HTTP/1.1 200"):
                    raise RuntimeError(f"the stream broke: {received[-500:]!r}")
                arrivals += [time.perf_counter()] * piece.count(b'"delta":{"content":')
                received += piece
        return Stream(
            first_token_s=arrivals[0] - sent,
            ms_per_token=1e3 * (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1),
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
    url = urlsplit(base_url)
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise RuntimeError(f"narrowgate serve ended with code {child.returncode}")
        # httpx makes a TLS context for each call, which would take half a core of what starts.
        link = HTTPConnection(url.hostname or "", url.port, timeout=5)
        try:
            link.request("GET", "/ready")
            if link.getresponse().status == 200:
                return
        except (HTTPException, OSError):
            pass
        finally:
            link.close()
        time.sleep(0.02)
    raise TimeoutError("narrowgate serve was not ready in time")
