"""Asking an interpreter about its vLLM: remembered, and refused in one line if it has none."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.backends.vllm_facts import VllmFacts, find_python, probe
from gateway.errors import LoadRefused

SAID: dict[str, Any] = {
    "version": "0.32.0",
    "has_command": False,
    "device": "cpu",
    "capability": None,
    "options": {"--port": None},
    "flags": [],
    "num_devices": 0,
    "has_tracing": False,
    "architectures": ["LlamaForCausalLM"],
    "has_bitsandbytes_plugin": False,
    "cpu_features": [],
    "head_sizes": [64],
    "int8_error": 0.1,
    "fp8_weights": [],
    "has_int4_kernel": False,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the memory of facts, and the interpreter of `make vllm-env`, out of these tests."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NARROWGATE_VLLM_PYTHON", raising=False)
    return tmp_path / "home"


def interpreter(directory: Path, lines: str) -> Path:
    """Return a program in the place of an environment's Python."""
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    (directory / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho called >> {directory}/calls\n{lines}\n")
    python.chmod(0o755)
    return python


def says(said: dict[str, Any]) -> str:
    """Return shell lines that print facts as the probe does, between a library's own."""
    return f"echo noise\necho 'narrowgate-vllm-probe:{json.dumps(said)}'"


def test_it_is_asked_once(tmp_path: Path) -> None:
    """Facts are remembered until something is installed beside vLLM."""
    env = tmp_path / "env"
    python = interpreter(env, says(SAID))
    first = asyncio.run(probe(python))
    assert isinstance(first, VllmFacts)
    assert (first.version, first.int8_error) == ("0.32.0", 0.1)
    assert asyncio.run(probe(python)) == first
    assert (env / "calls").read_text().count("called") == 1
    (env / "lib" / "python3.11" / "site-packages" / "other").mkdir()
    asyncio.run(probe(python))
    assert (env / "calls").read_text().count("called") == 2


def test_a_broken_memory_is_written_anew(tmp_path: Path, home: Path) -> None:
    """A half-written or old memory is no obstacle."""
    python = interpreter(tmp_path / "env", says(SAID))
    first = asyncio.run(probe(python))
    (memory,) = (home / "vllm-facts").iterdir()
    memory.write_text("{")
    assert asyncio.run(probe(python)) == first
    assert json.loads(memory.read_text())["version"] == "0.32.0"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "echo \"ModuleNotFoundError: No module named 'vllm'\" >&2; exit 1",
            "has no vLLM: install",
        ),
        ("echo 'ImportError: libcuda.so.1' >&2; exit 1", "does not start: ImportError: libcuda"),
        ("exit 3", "does not start: it wrote nothing"),
        ("kill -ILL $$", "does not start: was killed by SIGILL"),
        ("echo 'narrowgate-vllm-probe:{}'", "in a way this version cannot read"),
        (says(SAID | {"version": "0.11.2"}), "is 0.11.2: at least 0.28 is needed"),
        (says(SAID | {"version": "dev"}), "calls its version 'dev'"),
    ],
)
def test_refusals(tmp_path: Path, lines: str, words: str) -> None:
    """Each way to have no usable vLLM is one line that names the interpreter."""
    python = interpreter(tmp_path / "env", lines)
    with pytest.raises(LoadRefused) as refused:
        asyncio.run(probe(python))
    assert words in str(refused.value)
    assert str(python) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_run(tmp_path: Path) -> None:
    """An executable that is none is refused, too."""
    odd = tmp_path / "odd"
    odd.write_text("neither script nor binary")
    odd.chmod(0o755)
    with pytest.raises(LoadRefused, match="cannot be run"):
        asyncio.run(probe(odd))


def test_our_own_interpreter_has_none() -> None:
    """The real probe, in an interpreter without vLLM, says so."""
    with pytest.raises(LoadRefused, match="has no vLLM: install it there"):
        asyncio.run(probe(Path(sys.executable)))


def test_which_interpreter(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings come first, then the environment, then the one that was made; else refused."""
    with pytest.raises(LoadRefused, match="make vllm-env"):
        find_python(None)
    made = interpreter(home / "vllm", "")
    assert find_python(None) == made
    other = interpreter(tmp_path / "other", "")
    monkeypatch.setenv("NARROWGATE_VLLM_PYTHON", str(other))
    assert find_python(None) == other
    named = interpreter(tmp_path / "named", "")
    assert find_python(named) == named
    with pytest.raises(LoadRefused, match=r"'vllm_python' is '/nowhere', which is no program"):
        find_python(Path("/nowhere"))
    monkeypatch.setenv("NARROWGATE_VLLM_PYTHON", os.fspath(tmp_path))
    with pytest.raises(LoadRefused, match="the environment variable NARROWGATE_VLLM_PYTHON is"):
        find_python(None)
