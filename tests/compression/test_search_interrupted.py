"""A search that is ended, or that has no room: nothing half-written, and the next one goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from compression.events import OnProgress, Progress, ignore
from compression.paths import store_dir
from compression.presets import parse_recipe
from compression.recipe import Calibration
from compression.search.__main__ import main
from compression.search.allocation import Allocation
from compression.search.session import Session
from tests.checkpoints import make_tiny_checkpoint

Home = Callable[[str], None]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Return a function that moves to a cache of that name."""

    def move(name: str) -> None:
        monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / name))

    move("home")
    return move


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a tiny model of three layers."""
    return make_tiny_checkpoint(
        tmp_path / "model",
        hidden_size=64,
        intermediate_size=128,
        head_dim=32,
        num_hidden_layers=3,
    )


def session(model: Path, on_progress: OnProgress = ignore) -> Session:
    """Return a session on a short text."""
    calibration = Calibration(tokens=512)
    return Session(str(model), None, name="x", calibration=calibration, on_progress=on_progress)


def ended_at(detail: str) -> OnProgress:
    """Return a watcher that ends the process when it is told of ``detail``."""

    def watch(progress: Progress) -> None:
        if progress.detail.startswith(detail):
            raise SystemExit(143)

    return watch


def test_a_table_goes_on_where_it_was_ended(model: Path, tmp_path: Path, home: Home) -> None:
    """What is known is not measured again, and the whole is that of a search in one go."""
    with pytest.raises(SystemExit):
        _ = session(model, ended_at("costs of layer 1 of 3")).points
    (remembered,) = (tmp_path / "home" / "search").iterdir()
    known = json.loads(remembered.read_text())
    assert len(known["output_errors"]) == 4
    seen: list[Progress] = []
    resumed = session(model, seen.append).points
    assert [each.detail.partition(",")[0] for each in seen if each.stage == "search"] == [
        f"costs of layer {layer} of 3" for layer in (1, 2, 3)
    ]
    whole = json.loads(remembered.read_text())
    assert known["output_errors"].items() <= whole["output_errors"].items()
    home("another")
    assert session(model).points == resumed


def test_an_artifact_that_was_ended_is_not_there(model: Path, home: Home) -> None:
    """The store holds no part of it; the next search builds it, with the table as it was."""
    smallest = session(model).points[0]
    stopped = session(model, ended_at("artifact 1: measuring"))
    with pytest.raises(SystemExit):
        stopped.attempt(smallest)
    assert not [each for each in store_dir().iterdir() if each.is_dir()]
    seen: list[Progress] = []
    trial = attempt(session(model, seen.append), smallest)
    assert not [each for each in seen if each.detail.startswith("costs")]
    seen.clear()
    assert attempt(session(model, seen.append), smallest) == trial
    assert not [each for each in seen if each.detail.startswith("artifact")]  # it was in the store


def attempt(of: Session, allocation: Allocation) -> tuple[int, list[float]]:
    """Return the bytes and the divergences of an artifact."""
    trial = of.attempt(allocation)
    return trial.bytes_in_memory, [each.kld_mean for each in trial.slices]


def test_a_cache_that_cannot_be_written(model: Path, tmp_path: Path, home: Home) -> None:
    """The table is not remembered, and the search goes on."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "search").write_text("no directory")
    assert session(model).points[-1].cost == 0
    assert (tmp_path / "home" / "search").read_text() == "no directory"


def test_a_full_disk(
    model: Path,
    tmp_path: Path,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line says what is needed where; no recipe, no artifact, but the table is kept."""
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr("compression.build.shutil.disk_usage", lambda _: full)
    out = tmp_path / "mine.yaml"
    words = [f"--model={model}", "--tokens=512", f"--out={out}", f"--json={tmp_path / 'a.json'}"]
    assert main([*words, "--budget=kld<=1"]) == 2
    event = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert event["kind"] == "BuildError"
    assert "is full: the artifact needs" in event["message"]
    assert not out.exists()
    assert not (tmp_path / "a.json").exists()
    assert not [each for each in store_dir().iterdir() if each.is_dir()]
    assert len(list((tmp_path / "home" / "search").iterdir())) == 1


def test_a_size_that_nothing_fits_is_told_before_anything_is_measured(
    model: Path, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest artifact is told, from the shapes alone."""
    words = [f"--model={model}", "--tokens=512", f"--out={tmp_path / 'mine.yaml'}"]
    assert main([*words, "--max-bytes=1000"]) == 2
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "--max-bytes 1000 is less than the smallest artifact, 0.1 MB" in events[-1]["message"]
    assert not [each for each in events if each.get("stage") == "search"]
    assert not (tmp_path / "home" / "search").exists()


def test_what_was_found_is_written_as_json(
    model: Path, tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is what the command's last event holds."""
    place = tmp_path / "found.json"
    words = [f"--model={model}", "--tokens=512", f"--out={tmp_path / 'mine.yaml'}"]
    assert main([*words, "--max-bytes=200000", f"--json={place}"]) == 0
    report = json.loads(place.read_text())
    assert report == json.loads(capsys.readouterr().out.splitlines()[-1])["report"]
    assert report["best"]["bytes"] <= 200000
    sizes = [point["bytes"] for point in report["frontier"]]
    assert min(sizes) <= report["best"]["bytes"] <= max(sizes)
    recipe = parse_recipe(report["best"]["recipe"], where="test", default_name="x")
    assert recipe.digest == report["best"]["recipe_digest"]
    smallest = sum(min(option["bytes"] for option in each) for each in report["units"].values())
    largest = sum(max(option["bytes"] for option in each) for each in report["units"].values())
    assert largest - smallest == max(sizes) - min(sizes)
