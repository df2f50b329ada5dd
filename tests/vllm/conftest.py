"""What vLLM can do, and one on a tiny random checkpoint; skipped where vLLM is not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.backends.vllm_facts import VllmFacts, find_python
from gateway.engine.vllm_runner import VllmReader, serve_reader
from tests.checkpoints import make_tiny_checkpoint
from tests.vllm.served import facts_here, why_not

MAX_TOKENS = 255
TOP = 64


@dataclass(frozen=True)
class Served:
    """A running vLLM, and the checkpoint that it serves."""

    reader: VllmReader
    directory: Path


@pytest.fixture(scope="session")
def vllm_python() -> Path:
    """Return the interpreter that has vLLM."""
    if (reason := why_not()) is not None:
        pytest.skip(f"no vLLM: {reason}")
    return find_python(None)


@pytest.fixture(scope="session")
def served(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return vLLM on a checkpoint whose heads are of a size that its CPU kernels take."""
    directory = make_tiny_checkpoint(tmp_path_factory.mktemp("served") / "llama", head_dim=32)
    with serve_reader(directory, MAX_TOKENS, python=vllm_python, top=TOP, threads=2) as reader:
        yield Served(reader, directory)


@pytest.fixture(scope="session")
def facts() -> VllmFacts:
    """Return what the installed vLLM can do here."""
    return facts_here()
