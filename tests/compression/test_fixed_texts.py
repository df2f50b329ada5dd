"""The texts that a build keeps: what is in them, what the manifest says, and what is refused."""

import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from compression.digest import hash_file
from compression.errors import ArtifactError, FidelityError
from compression.events import ignore
from compression.fixed_texts import (
    ALL,
    FILE_NAME,
    NUM_TOP,
    distance,
    mean_distances,
    read_fixed_texts,
)
from compression.inspection import render_manifest
from compression.manifest import FILE_NAME as MANIFEST
from compression.manifest import Manifest, read_manifest
from compression.prepare import build_to, prepare
from compression.verification import require_unchanged
from gateway.engine.runner import load_runner


def manifest_of(directory: Path) -> Manifest:
    """Return an artifact's manifest."""
    found = read_manifest(directory)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def artifact(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a measured artifact."""
    place = tmp_path_factory.mktemp("kept") / "int8"
    build_to(str(tiny_llama_dir), "int8-fast", None, place, ignore, is_measured=True)
    return place


def test_a_measured_build_keeps_what_its_weights_predict(artifact: Path) -> None:
    """The likeliest tokens and their log-probabilities, which an engine comes near to."""
    manifest = manifest_of(artifact)
    texts = read_fixed_texts(artifact).texts
    assert manifest.fidelity is not None
    assert manifest.fixed_texts is not None
    assert {each.name for each in texts} == {each.name for each in manifest.fidelity}
    assert manifest.fixed_texts.tokens == sum(each.tokens for each in manifest.fidelity)
    assert manifest.files[FILE_NAME] == hash_file(artifact / FILE_NAME)
    runner = load_runner(artifact, threads=1, max_model_len=None)
    for text in texts:
        row = runner.score(list(text.token_ids)).log_softmax(1)[text.first - 1 : -1]
        ids = torch.tensor(text.top_ids)
        assert ids.shape == (len(text.token_ids) - text.first, NUM_TOP)
        told, kept = row.gather(1, ids), torch.tensor(text.logprobs)
        assert (told - kept).abs().mean() < 0.02
        assert bool((kept[:, 0] >= kept[:, -1]).all())


def test_a_build_that_is_not_measured_keeps_none(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Nothing lies there, and `narrowgate inspect` says so."""
    build_to(str(tiny_llama_dir), "int8-fast", None, tmp_path / "out", ignore)
    assert not (tmp_path / "out" / FILE_NAME).exists()
    assert "not kept" in shown(manifest_of(tmp_path / "out"))


def shown(manifest: Manifest) -> str:
    """Return the row of the overview that is about the texts."""
    page = io.StringIO()
    console = Console(file=page, width=200)
    for table in render_manifest(manifest):
        console.print(table)
    return next(line for line in page.getvalue().splitlines() if "fixed texts" in line)


def test_inspect_shows_what_is_kept(artifact: Path) -> None:
    """Also that no engine read them yet."""
    manifest = manifest_of(artifact)
    assert manifest.fixed_texts is not None
    assert f"{manifest.fixed_texts.tokens} tokens kept, read by no engine" in shown(manifest)


def test_what_was_measured_before_texts_were_kept_is_measured_again(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored artifact gains its texts and stays itself otherwise."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path))
    model = str(tiny_llama_dir)
    made = prepare(model, "int8-fast", None, ignore, is_measured=True)
    path = made.directory / MANIFEST
    fields = json.loads(path.read_text())
    fields["fixed_texts"] = None
    del fields["files"][FILE_NAME]
    path.write_text(json.dumps(fields))
    (made.directory / FILE_NAME).unlink()
    again = prepare(model, "int8-fast", None, ignore, is_measured=True)
    assert (again.directory, again.manifest) == (made.directory, made.manifest)
    require_unchanged(made.directory, manifest_of(made.directory))


def test_what_cannot_be_measured_again_is_served_as_it_was(
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An artifact of an earlier version still loads; one that was never measured is refused."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path))
    model = str(tiny_llama_dir)
    made = prepare(model, "int8-fast", None, ignore, is_measured=True)
    path = made.directory / MANIFEST
    fields = json.loads(path.read_text())

    def fail(*arguments: Any) -> None:
        raise FidelityError("logits are no numbers")

    monkeypatch.setattr("compression.fidelity_check.measure_build", fail)
    fields["fixed_texts"] = None
    path.write_text(json.dumps(fields))
    again = prepare(model, "int8-fast", None, ignore, is_measured=True)
    assert again.manifest is not None
    assert again.manifest.fixed_texts is None
    assert "keeps no fixed texts: logits are no numbers" in caplog.text
    path.write_text(json.dumps(fields | {"fidelity": None}))
    with pytest.raises(FidelityError):
        prepare(model, "int8-fast", None, ignore, is_measured=True)


def test_a_changed_file_is_refused_like_any_other(artifact: Path, tmp_path: Path) -> None:
    """An engine does not start on it."""
    place = Path(shutil.copytree(artifact, tmp_path / "copy"))
    text = (place / FILE_NAME).read_text()
    (place / FILE_NAME).write_text(text.replace("-1.", "-2.", 1).replace("-5.", "-6.", 1))
    with pytest.raises(ArtifactError, match="was changed after it was built"):
        require_unchanged(place, manifest_of(place))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text | {"first": 0},
        lambda text: text | {"logprobs": text["logprobs"][1:]},
        lambda text: text | {"top_ids": [[1], *text["top_ids"][1:]]},
        lambda text: text | {"logprobs": [["x"], *text["logprobs"][1:]]},
        lambda text: text | {"logprobs": [[0.5] * NUM_TOP, *text["logprobs"][1:]]},
        lambda text: {"name": "english"},
    ],
)
def test_texts_that_do_not_fit_are_refused(artifact: Path, tmp_path: Path, spoil: Any) -> None:
    """With the file's name and what to do."""
    texts = json.loads((artifact / FILE_NAME).read_text())["texts"]
    (tmp_path / FILE_NAME).write_text(json.dumps({"texts": [spoil(texts[0])]}))
    with pytest.raises(ArtifactError, match=r"fixed_texts\.json.*build the artifact again"):
        read_fixed_texts(tmp_path)
    with pytest.raises(ArtifactError, match="build the artifact again"):
        read_fixed_texts(tmp_path / "nowhere")
    (tmp_path / FILE_NAME).write_text('{"texts": []}')
    with pytest.raises(ArtifactError, match="no texts"):
        read_fixed_texts(tmp_path)


def test_the_distance_is_the_change_of_log_probabilities() -> None:
    """Of 2 % on everything that is likely, the root mean square is 2 %; of nothing it is 0."""
    kept = [math.log(each) for each in (0.4, 0.3, 0.2, 0.1)]
    tilted = [each + shift for each, shift in zip(kept, (0.02, -0.02, 0.02, -0.02), strict=True)]
    total = math.log(sum(map(math.exp, tilted)))
    assert distance(kept, kept) == 0.0
    assert distance(kept, [each - total for each in tilted]) == pytest.approx(0.02, rel=0.05)


def test_no_number_is_no_small_distance() -> None:
    """NaN must not pass for what is as at the build."""
    assert distance([-1.0, -2.0], [-1.0, math.nan]) == math.inf


@given(
    st.lists(st.floats(-30, -1.6), min_size=1, max_size=4),
    st.lists(st.floats(-1000, 0), min_size=4, max_size=4),
)
def test_a_distance_is_a_number(kept: list[float], told: list[float]) -> None:
    """Whatever an engine tells."""
    found = distance(kept, told[: len(kept)])
    assert math.isfinite(found)
    assert found >= 0


def test_means_count_every_token_alike() -> None:
    """Not every text."""
    found = mean_distances({"a": [1.0, 2.0, 3.0], "b": [6.0]})
    assert found == {ALL: 3.0, "a": 2.0, "b": 6.0}
