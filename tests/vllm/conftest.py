"""One real vLLM on a tiny random checkpoint, for all tests here; skipped where vLLM is not."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from compression.errors import ReaderError
from gateway.engine.vllm_runner import VllmReader, find_python, start_vllm, vllm_version
from tests.checkpoints import make_tiny_checkpoint

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
    try:
        python = find_python(None)
    except ReaderError:
        pytest.skip("no vLLM: name its interpreter in NARROWGATE_VLLM_PYTHON")
    return python


@pytest.fixture(scope="session")
def served(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Return vLLM on a checkpoint whose heads are of a size that its CPU kernels take."""
    directory = make_tiny_checkpoint(tmp_path_factory.mktemp("served") / "llama", head_dim=32)
    version = vllm_version(vllm_python)
    with start_vllm(
        directory, MAX_TOKENS, python=vllm_python, version=version, top=TOP, threads=2
    ) as reader:
        yield Served(reader, directory)
