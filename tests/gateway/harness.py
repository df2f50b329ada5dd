"""A gateway as a child process, with its fake engine, and what tests ask of both."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_port

T = TypeVar("T")

QUESTION: list[dict[str, str]] = [{"role": "user", "content": "one two three"}]
CHAT = "/v1/chat/completions"


def eventually(found: Callable[[], T], timeout_s: float = 60.0) -> T:
    """Return the first true value of ``found``, or fail after ``timeout_s`` seconds.

    The limit is for what never comes true; a busy machine may take its time.
    """
    until = time.monotonic() + timeout_s
    while True:
        value = found()
        if value:
            return value
        if time.monotonic() > until:
            raise AssertionError(f"still {value!r} after {timeout_s} s")
        time.sleep(0.02)


async def until(is_so: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for something inside an event loop."""
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110 (a test looks from outside, nobody tells it)
            await asyncio.sleep(0.01)


def body(*, stream: bool = False, fake: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a chat request whose fake engine follows a script."""
    return {"model": "tiny", "messages": QUESTION, "stream": stream, "fake": dict(fake or {})}


class Gateway:
    """One gateway process."""

    def __init__(
        self, directory: Path, settings: Mapping[str, Any], launch: Mapping[str, Any]
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._notebook = directory / f"engines-{self.port}"
        self._log = directory / f"log-{self.port}"
        models: dict[str, Any] = {"tiny": {"model": "fake", "recipe": "int4"}}
        models = dict(settings.get("models", models))
        for alias, model in models.items():
            models[alias] = {"extra_parameters": ["fake"]} | model
        options = {
            "settings": {"port": self.port, **settings, "models": models},
            "launch": dict(launch),
            "notebook": str(self._notebook),
        }
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.gateway.run_gateway", json.dumps(options)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Nothing of a test's is to be found by the next one, or by the user.
                env={**os.environ, "NARROWGATE_HOME": str(directory / "home")},
            )
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    @property
    def log(self) -> str:
        """Return what the gateway wrote to stderr."""
        return self._log.read_text()

    def wait_listening(self) -> None:
        """Wait until it answers at all."""
        eventually(lambda: self.status("/health") == 200)

    def wait_ready(self) -> None:
        """Wait until a model is ready."""
        try:
            eventually(lambda: self.status("/ready") == 200)
        except AssertionError as error:
            raise AssertionError(f"not ready, {error}; its log:\n{self.log[-4000:]}") from None

    def status(self, path: str) -> int:
        """Return the status of a GET, 0 where nobody listens."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return 0

    @property
    def engine_pid(self) -> int:
        """Return the process id of the engine that was started last."""
        return int(self._last_engine()[1])

    def engine_state(self) -> dict[str, int]:
        """Return the fake engine's counts."""
        counts: dict[str, int] = httpx.get(f"{self._last_engine()[0]}/fake/state").json()
        return counts

    def engine_times(self) -> dict[str, dict[str, Any]]:
        """Return when the fake engine decoded each labelled request's tokens, and its end."""
        times: dict[str, dict[str, Any]] = httpx.get(f"{self._last_engine()[0]}/fake/times").json()
        return times

    def num_blocks(self) -> int:
        """Return how many blocks of memory the gateway's Python objects hold, without garbage."""
        file = self._notebook.with_suffix(".blocks")
        file.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        return eventually(lambda: int(file.read_text() or 0) if file.exists() else 0)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of all samples with these labels."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"narrowgate_{name}" and labels.items() <= sample.labels.items()
        )

    @contextmanager
    def stream(self, fake: Mapping[str, Any], **fields: Any) -> Iterator[httpx.Response]:
        """Open a streamed chat."""
        content = body(stream=True, fake=fake) | fields
        with self.http.stream("POST", CHAT, json=content) as response:
            yield response

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.http.close()
        self.openai.close()
        self.process.kill()
        self.process.communicate()

    def _last_engine(self) -> list[str]:
        return self._engines("@reference", is_named=False)[-1]

    @property
    def engine_url(self) -> str:
        """Return where the engine that was started last listens."""
        return self._last_engine()[0]

    @property
    def references(self) -> list[int]:
        """Return the process ids of all references that were started."""
        return [int(line[1]) for line in self._engines("@reference", is_named=True)]

    def _engines(self, ending: str, *, is_named: bool) -> list[list[str]]:
        lines = self._notebook.read_text().splitlines() if self._notebook.exists() else []
        return [line.split() for line in lines if line.endswith(ending) is is_named]


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def resident_bytes(pid: int) -> int:
    """Return a process's resident memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
