"""Hub models come whole into the hub's own cache; every refusal is one line with a remedy."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from compression.errors import ModelNotFound, SourceError
from compression.events import Progress
from compression.source import resolve_source
from tests.compression.fake_hub import COMMIT, GATED, REPOSITORY, FakeHub, serve_hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the empty hub cache of this test."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def hub(
    cache: Path, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """Yield a hub that has the tiny Llama, together with files nobody needs."""
    root = shutil.copytree(tiny_llama_dir, tmp_path / "hub")
    (root / "onnx").mkdir()
    for name in ("onnx/model.json", "pytorch_model.bin", "consolidated.safetensors", "README.md"):
        (root / name).write_bytes(b"unwanted")
    with serve_hub(root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def seed(cache: Path, checkpoint: Path) -> Path:
    """Lay ``checkpoint`` into the hub cache as a download would; return the snapshot."""
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)


def test_snapshot_is_fetched(hub: FakeHub, tiny_llama_dir: Path) -> None:
    """Only the wanted files come, whole, with progress in bytes up to the total."""
    events: list[Progress] = []
    source = resolve_source(REPOSITORY, on_progress=events.append)
    names = {path.name for path in tiny_llama_dir.iterdir()}
    assert {path.name for path in source.iterdir()} == names
    assert set(hub.fetched) == names
    for name in names:
        assert (source / name).read_bytes() == (tiny_llama_dir / name).read_bytes()
    total = sum(path.stat().st_size for path in tiny_llama_dir.iterdir())
    assert events[-1] == Progress("fetch", total, total, "bytes", REPOSITORY)


def test_second_time_nothing_is_fetched(hub: FakeHub) -> None:
    """A snapshot in the cache is used again."""
    first = resolve_source(REPOSITORY)
    hub.fetched.clear()
    events: list[Progress] = []
    assert resolve_source(REPOSITORY, on_progress=events.append) == first
    assert not hub.fetched
    assert not events


def test_commit_as_revision(hub: FakeHub) -> None:
    """A revision picks the snapshot."""
    assert resolve_source(REPOSITORY, revision=COMMIT).name == COMMIT


def test_offline_cache(cache: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE a model in the cache is found without a network."""
    snapshot = seed(cache, tiny_llama_dir)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve_source("org/tiny") == snapshot


def test_offline_and_absent(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE an absent model is refused with that variable's name."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"cannot fetch 'org/tiny': HF_HUB_OFFLINE is set"):
        resolve_source("org/tiny")


def test_offline_and_partial(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that was cut short is not taken for the model."""
    (resolve_source(REPOSITORY) / "tokenizer.json").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="it is not whole in the local hub cache"):
        resolve_source(REPOSITORY)


def test_unreachable_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the refusal says so."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"cannot fetch 'org/tiny': the hub cannot be reached"):
        resolve_source("org/tiny")


@pytest.mark.parametrize(
    ("name", "revision", "kind", "message"),
    [
        ("org/none", None, ModelNotFound, "the hub has no such model or it is private"),
        (GATED, None, SourceError, "is gated: accept its terms .* HF_TOKEN"),
        (REPOSITORY, "v9", ModelNotFound, "has no revision 'v9'"),
        ("org/a--b", None, ModelNotFound, "is no valid hub id"),
    ],
)
def test_refusals(
    hub: FakeHub, name: str, revision: str | None, kind: type[SourceError], message: str
) -> None:
    """Each refusal of the hub is one line that names the model and the remedy."""
    with pytest.raises(kind, match=message) as caught:
        resolve_source(name, revision=revision)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_repository_without_safetensors(hub: FakeHub) -> None:
    """A hub model in another format is refused like a directory."""
    (hub.root / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"has no \*\.safetensors file"):
        resolve_source(REPOSITORY)


def test_interrupt_ends_the_download(hub: FakeHub) -> None:
    """An interrupt stops the child process at once, although files are still to come."""

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    hub.may_send.clear()
    try:
        with pytest.raises(KeyboardInterrupt):
            resolve_source(REPOSITORY, on_progress=interrupt)
        children = psutil.Process().children(recursive=True)
        assert not [child for child in children if "compression.hub_download" in child.cmdline()]
        assert not hub.fetched
    finally:
        hub.may_send.set()


def test_crash_of_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure that nobody foresaw becomes one line too; the log has the details."""
    monkeypatch.setenv("HF_ENDPOINT", "nonsense://hub")
    with pytest.raises(SourceError, match=r"^fetching 'org/tiny' ended unexpectedly"):
        resolve_source("org/tiny")
