"""Damage in the files of the real artifact is caught, and what is sound is left alone."""

from pathlib import Path

import pytest

from benchmarks.shadow.damage import Scored, mean, replay
from benchmarks.shadow.damaged import DAMAGES, write_damaged
from benchmarks.shadow.scores import read, score, texts
from compression.events import ignore
from compression.prepare import prepare
from gateway.engine.runner import load_runner

GROSS = 30
"""Scored requests within which gross damage must be seen."""


@pytest.mark.real_model
def test_missing_heads_are_caught_within_thirty_requests(
    demo_model_dir: Path, tmp_path: Path
) -> None:
    """Three of nine heads lost in the build: drift at once; the sound artifact never drifts."""
    artifact = prepare("smollm2", "int8", None, ignore, is_measured=True)
    assert artifact.manifest is not None
    fidelity = artifact.manifest.fidelity or ()
    write_damaged(artifact.directory, DAMAGES["three heads"], tmp_path / "damaged")
    full = load_runner(demo_model_dir, threads=1, max_model_len=64)
    expected = [read(full, each) for each in texts(demo_model_dir, 1, 32)]
    found: dict[str, list[Scored]] = {}
    for directory in (artifact.directory, tmp_path / "damaged"):
        served = load_runner(directory, threads=1, max_model_len=64)
        found[directory.name] = [Scored(each.text, score(full, each, served)) for each in expected]
    sound, damaged = found[artifact.directory.name], found["damaged"]
    assert mean(sound) < 0.01 < mean(damaged)
    for seed in range(3):
        at_once = replay(sound, damaged, fidelity, before=0, seed=seed)
        after = replay(sound, damaged, fidelity, before=300, seed=seed)
        assert at_once.any_slice is not None
        assert at_once.any_slice <= GROSS
        assert after.whole is not None
        assert after.whole <= GROSS
        unharmed = replay(sound, sound, fidelity, before=0, seed=seed)
        assert unharmed.any_slice is None
