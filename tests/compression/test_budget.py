"""A build that is measured, and a budget that is kept or not."""

from pathlib import Path

import pytest

from compression.errors import BuildError
from compression.events import ignore
from compression.manifest import read_manifest
from compression.paths import store_dir
from compression.prepare import build_to, prepare
from tests.checkpoints import make_tiny_checkpoint

SLICES = {"english", "german", "french", "chinese", "code", "json", "arithmetic"}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a tiny model beside an empty store."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    return str(make_tiny_checkpoint(tmp_path / "model"))


def recipe(tmp_path: Path, kld: float) -> str:
    """Write an int4 recipe with a budget."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"weights: {{scheme: int4, method: rtn}}\nbudget: {{kld: {kld}}}\n")
    return str(path)


def test_budget_that_is_kept_is_in_the_manifest(model: str, tmp_path: Path) -> None:
    """Every slice with its interval, worst first."""
    built = build_to(model, recipe(tmp_path, 50.0), None, tmp_path / "out", ignore)
    manifest = read_manifest(built.directory)
    if manifest is None or manifest.fidelity is None:
        pytest.fail("a build with a budget is measured")
    klds = [each.kld_mean for each in manifest.fidelity]
    assert {each.name for each in manifest.fidelity} == SLICES
    assert klds == sorted(klds, reverse=True)
    for each in manifest.fidelity:
        low, high = each.kld_mean_ci95
        assert 0 < low < each.kld_mean < high


def test_budget_that_is_broken_leaves_nothing(model: str, tmp_path: Path) -> None:
    """Neither a directory nor an entry of the store, and the way out is told."""
    path = recipe(tmp_path, 1e-6)
    expected = r"'mine' breaks its budget \(kld .* > 1e-06\): use a safer recipe, find one with"
    with pytest.raises(BuildError, match=expected):
        build_to(model, path, None, tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BuildError, match=expected):
        prepare(model, path, None, ignore)
    assert not [each for each in store_dir().glob("*") if each.is_dir()]


def test_measured_on_request(model: str, tmp_path: Path) -> None:
    """Without a budget a build is measured only where that is asked for."""
    plain = build_to(model, "int8-fast", None, tmp_path / "plain", ignore)
    measured = build_to(model, "int8-fast", None, tmp_path / "out", ignore, is_measured=True)
    if plain.manifest is None or measured.manifest is None:
        pytest.fail("an artifact has a manifest")
    assert plain.manifest.fidelity is None
    assert {each.name for each in measured.manifest.fidelity or ()} == SLICES
