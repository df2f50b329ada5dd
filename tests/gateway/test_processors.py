"""Replicas on a processor: each with all that it starts on its own part of the processors."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compression.events import ignore
from gateway.backends.child import ChildProcess
from gateway.backends.embedded import HOST
from gateway.backends.vllm import VllmStart
from gateway.backends.vllm_facts import VllmFacts
from gateway.backends.vllm_plan import VllmPlan
from gateway.model_settings import VariantSettings
from gateway.upstream import EngineClient
from gateway.vllm_launch import start_vllm
from tests.gateway.test_vllm_plan import facts, gpu
from tests.ports import free_port

# It stands where vLLM's interpreter does, notes where it and a child of its own may run, serves.
FAKE_VLLM = """\
import http.server, json, os, subprocess, sys
words = dict(word.removeprefix("--").split("=", 1) for word in sys.argv if word[:2] == "--" and "=" in word)
own = "import os; print(*os.sched_getaffinity(0))"
below = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True).stdout
workers = os.environ.get("VLLM_CPU_OMP_THREADS_BIND")
said = [sorted(os.sched_getaffinity(0)), sorted(map(int, below.split())), workers]
with open(os.path.join(words["model"], "said.json"), "w") as file:
    json.dump(said, file)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

http.server.HTTPServer(("127.0.0.1", int(words["port"])), Handler).serve_forever()
"""  # noqa: E501


@pytest.fixture
def ours() -> Iterator[list[int]]:
    """Let this process run on every processor of the machine, of which there are two or more."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            pytest.skip("one processor cannot be shared out")
        yield allowed
    finally:
        os.sched_setaffinity(0, before)


def _said(directory: Path, found: VllmFacts, *, replicas: int, replica: int) -> list[object]:
    """Return where a fake vLLM and its child may run, and where it was told to put workers."""
    python = directory / "python"
    python.write_text(f"#!{sys.executable}\n{FAKE_VLLM}")
    python.chmod(0o755)
    (directory / "config.json").write_text("{}")
    port = free_port()

    async def run() -> None:
        client = EngineClient(f"http://{HOST}:{port}", served_name="m@v", read_timeout_s=5)
        engine = await start_vllm(
            VllmStart(python, found, VllmPlan()),
            directory,
            client,
            settings=VariantSettings(model="m", engine="vllm", replicas=replicas),
            port=port,
            replica=replica,
            timeout_s=20,
            on_progress=ignore,
        )
        await engine.stop(0)

    asyncio.run(run())
    said: list[object] = json.loads((directory / "said.json").read_text())
    return said


def test_each_replica_and_what_it_starts_have_a_part(tmp_path: Path, ours: list[int]) -> None:
    """No process of one engine runs on another's part; the workers are told the same."""
    half = len(ours) // 2
    for replica in range(2):
        mine = ours[replica * half :][:half]
        workers = ",".join(map(str, mine))
        said = _said(tmp_path, facts(), replicas=2, replica=replica)
        assert said == [mine, mine, workers]


def test_one_engine_and_engines_on_gpus_have_all(tmp_path: Path, ours: list[int]) -> None:
    """Nothing is held back from an engine that shares the processors with no replica."""
    assert _said(tmp_path, facts(), replicas=1, replica=0) == [ours, ours, "nobind"]
    there = gpu(num_devices=2)
    assert _said(tmp_path, there, replicas=2, replica=1) == [ours, ours, None]


def test_a_child_that_cannot_be_held_runs_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Where the system refuses, nobody loses an engine by it."""
    absent = 100_000

    async def run() -> int:
        child = await ChildProcess.start(
            [sys.executable, "-c", "pass"],
            on_stdout=lambda line: None,
            on_stderr=lambda line: None,
            processors={absent},
        )
        return await child.wait()

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(run()) == 0
    (said,) = (each.getMessage() for each in caplog.records)
    assert said.endswith(f"it could not be held to [{absent}]")
