"""What a build needs of the machine is checked before a weight is read."""

from pathlib import Path

import pytest

from compression import machine
from compression.errors import BuildError
from compression.events import ignore
from compression.prepare import build_to


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))


def test_nf4_without_bitsandbytes(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The missing package and the way out are named; nothing stays."""
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match="'nf4' has nf4, which needs the package bitsandbytes"):
        build_to(str(tiny_llama_dir), "nf4", None, tmp_path / "a" / "out", ignore)
    assert not (tmp_path / "a").exists()


def test_memory_that_no_part_of_is_enough(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build whose bound is above all memory is refused with both figures."""
    monkeypatch.setattr(machine, "memory_bytes", lambda: 10**8)
    with pytest.raises(BuildError, match=r"may take 0\.\d GB of memory .* has 0\.1 GB with swap"):
        build_to(str(tiny_llama_dir), "int8", None, tmp_path / "out", ignore)


def test_memory_is_counted() -> None:
    """More than this test takes, less than a terabyte of terabytes."""
    assert 10**8 < machine.memory_bytes() < 10**18
