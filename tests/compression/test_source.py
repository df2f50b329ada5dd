"""A model name leads to one checkpoint directory, or to one clear line."""

import shutil
from pathlib import Path

import pytest

from compression.demo_model import ensure_demo_model
from compression.errors import ModelNotFound, SourceError
from compression.source import resolve_source


def test_directory(tiny_llama_dir: Path) -> None:
    """An existing directory is taken as it is."""
    assert resolve_source(str(tiny_llama_dir)) == tiny_llama_dir


def test_relative_directory(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path becomes an absolute directory, even if it looks like a hub id."""
    monkeypatch.chdir(tiny_llama_dir.parent.parent)
    name = f"{tiny_llama_dir.parent.name}/{tiny_llama_dir.name}"
    assert resolve_source(name) == tiny_llama_dir


def test_home_directory(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``~`` is the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(tiny_llama_dir, tmp_path / "model")
    assert resolve_source("~/model") == tmp_path / "model"


@pytest.mark.real_model
def test_demo_name_wins(
    demo_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``smollm2`` is the demo model even where a directory has that name."""
    (tmp_path / "smollm2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_source("smollm2") == demo_model_dir
    assert ensure_demo_model() == demo_model_dir


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "../model", "~/no-such", "a/b/c"])
def test_missing_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks like a path is never looked up on a hub."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=f"model '{name}': there is no such directory"):
        resolve_source(name)


@pytest.mark.parametrize("name", ["nothing", "", "org/", "sp ace/x"])
def test_unknown_name(name: str, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other name is refused with the three kinds of names; an empty one is no directory."""
    monkeypatch.chdir(tiny_llama_dir)
    with pytest.raises(ModelNotFound, match=f"^model '{name}' is unknown: give 'smollm2', an "):
        resolve_source(name)


@pytest.mark.parametrize("name", ["x" * 300, "~nobody-has-this-name/model"])
def test_path_that_cannot_be(name: str) -> None:
    """A path that the system itself refuses still gives one line."""
    with pytest.raises(SourceError, match="model '") as caught:
        resolve_source(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "remedy"),
    [
        ([], "give a Hugging Face checkpoint directory"),
        (["config.json"], "give a Hugging Face checkpoint directory"),
        (["model.Q4_K_M.gguf"], "GGUF files cannot be read; fetch the model's original"),
        (["config.json", "pytorch_model.bin"], "convert them with transformers'"),
        (["config.json", "consolidated.00.pth"], "convert them with transformers'"),
    ],
)
def test_directory_without_safetensors(files: list[str], remedy: str, tmp_path: Path) -> None:
    """A directory in another format is refused with the way out."""
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(SourceError, match=r"has no \*\.safetensors file") as caught:
        resolve_source(str(tmp_path))
    assert remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_file_is_refused(tmp_path: Path) -> None:
    """A file instead of a directory is refused, and a GGUF file by its kind."""
    gguf = tmp_path / "model.gguf"
    gguf.touch()
    with pytest.raises(SourceError, match=r"is a file: give the directory.*GGUF"):
        resolve_source(str(gguf))


@pytest.mark.parametrize("is_demo", [True, False])
def test_revision_of_a_directory(tiny_llama_dir: Path, is_demo: bool) -> None:
    """A revision makes sense for hub ids only and is never ignored."""
    name = "smollm2" if is_demo else str(tiny_llama_dir)
    with pytest.raises(SourceError, match="revision 'v2' cannot be used with model"):
        resolve_source(name, revision="v2")
