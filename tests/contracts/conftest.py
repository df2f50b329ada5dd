"""The engines that the contract suite runs against; each is a process with a base URL."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from tests.checkpoints import make_tiny_checkpoint
from tests.engine.processes import started
from tests.gateway.harness import eventually
from tests.ports import free_port
from tests.vllm.served import demo


@contextmanager
def fake_engine() -> Iterator[str]:
    """Run the fake engine that the gateway's tests stand on."""
    port = free_port()
    command = [sys.executable, "-m", "tests.gateway.fake_engine"]
    command += ["--served-model-name", "tiny@int4", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: _answers(url), 240)
        yield url
        process.terminate()
        assert process.wait(60) == 0


@contextmanager
def embedded_engine() -> Iterator[str]:
    """Run the embedded engine on a tiny random Llama."""
    with TemporaryDirectory() as directory:
        checkpoint = make_tiny_checkpoint(Path(directory))
        with started(checkpoint) as engine:
            yield engine.url
            engine.process.terminate()
            assert engine.process.wait(60) == 0


@contextmanager
def vllm_engine() -> Iterator[str]:
    """Run `make vllm-demo`: the demo model's int4 artifact on vLLM, behind the gateway."""
    with TemporaryDirectory() as directory:
        small = ["--kv-cache-memory-bytes=512MiB", "--max-model-len=1024"]
        with demo(Path(directory), "int4", *small) as gateway:
            yield gateway.url


ENGINES: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "fake": fake_engine,
    "embedded": embedded_engine,
    "vllm": vllm_engine,
}


VLLM = pytest.param("vllm", marks=pytest.mark.vllm)


@pytest.fixture(scope="session", params=["fake", "embedded", VLLM])
def engine_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the base URL of a ready engine."""
    with ENGINES[request.param]() as url:
        yield url


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False
