"""Builds: what an artifact holds, and that failures leave nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from compression.__main__ import main
from compression.errors import ArtifactError, BuildError, CorruptCheckpoint, RecipeError
from compression.events import Progress, ignore
from compression.facts import read_facts
from compression.manifest import FILE_NAME, read_manifest
from compression.paths import store_dir
from compression.plan import make_plan
from compression.prepare import build_to, prepare, prepare_recipe
from compression.presets import PRESETS, parse_recipe
from compression.schemes import Int4
from tests.checkpoints import make_tiny_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a store of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def store_entries() -> list[str]:
    """Return what the store holds, locks aside."""
    return sorted(path.name for path in store_dir().iterdir() if path.suffix != ".lock")


def test_plan_counts_the_bytes_it_will_write(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Planned bytes, manifest and file sizes agree."""
    plan = make_plan(read_facts(tiny_llama_dir), PRESETS["int4-fast"])
    built = build_to(str(tiny_llama_dir), "int4-fast", None, tmp_path / "out", ignore)
    assert built.manifest is not None
    payload = (tmp_path / "out/model.safetensors").stat().st_size
    assert built.manifest.bytes_stored == plan.bytes_stored
    assert 0 < payload - plan.bytes_stored < 8192
    assert built.manifest.bytes_in_memory < 0.5 * built.manifest.bytes_before


def test_manifest_tells_what_was_done(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Every tensor is listed with its scheme, its bytes and the error of its codes."""
    build_to(str(tiny_llama_dir), "int4-fast", None, tmp_path / "out", ignore)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    by_name = {tensor.name: tensor for tensor in manifest.tensors}
    linear = by_name["model.layers.0.mlp.up_proj.weight"]
    assert (linear.requested, linear.applied) == ("int4-g32-asym", "int4-g32-asym")
    assert linear.relative_error is not None
    assert 0.05 < linear.relative_error < 0.15
    assert by_name["model.embed_tokens.weight"].applied == "int8-rows"
    assert by_name["model.norm.weight"].relative_error is None
    assert set(by_name) == set(read_facts(tiny_llama_dir).tensors)
    assert manifest.recipe_digest == PRESETS["int4-fast"].digest
    assert manifest.peak_memory_bytes > 0


def test_second_preparation_is_a_hit(tiny_llama_dir: Path) -> None:
    """The store answers for the same source and recipe, whatever the recipe is called."""
    first = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    second = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    assert (first.cached, second.cached) == (False, True)
    assert first.directory == second.directory
    assert first.manifest == second.manifest


def test_changed_weights_are_another_artifact(tmp_path: Path) -> None:
    """One changed weight in the source leads to a new digest and a new directory."""
    source = make_tiny_checkpoint(tmp_path / "source")
    first = prepare(str(source), "int8-fast", None, ignore)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    second = prepare(str(source), "int8-fast", None, ignore)
    assert not second.cached
    assert first.directory != second.directory


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_changed_companions_are_another_artifact(tmp_path: Path, file: str) -> None:
    """A changed config, tokenizer or chat template never meets the old artifact."""
    source = make_tiny_checkpoint(tmp_path / "source")
    first = prepare(str(source), "int8-fast", None, ignore)
    path = source / file
    path.write_text(path.read_text() + "\n")
    second = prepare(str(source), "int8-fast", None, ignore)
    assert first.directory != second.directory
    assert (second.directory / file).exists()


def test_full_is_the_checkpoint_itself(tiny_llama_dir: Path) -> None:
    """The recipe `full` builds nothing."""
    prepared = prepare(str(tiny_llama_dir), "full", None, ignore)
    assert prepared.directory == tiny_llama_dir
    assert prepared.manifest is None


def test_the_checkpoint_itself_has_the_digest_of_its_artifacts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for, it is told without a build, and another one after a weight has changed."""
    source = make_tiny_checkpoint(tmp_path / "source")

    def told(*options: str) -> str | None:
        words = ["prepare", "--model", str(source), "--recipe", "full", *options]
        assert main(words) == 0
        ready = json.loads(capsys.readouterr().out.splitlines()[-1])
        found: str | None = ready["digest"]
        return found

    assert told() is None
    manifest = prepare(str(source), "int8-fast", None, ignore).manifest
    assert manifest is not None
    before = told("--digest")
    assert before == manifest.source.digest
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert told("--digest") != before


@pytest.mark.parametrize("method", ["mse", "imatrix", "gptq"])
def test_nan_is_refused_and_leaves_nothing(tmp_path: Path, method: str) -> None:
    """A NaN weight is named, whoever meets it first, and the store stays empty."""
    source = make_tiny_checkpoint(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    body = {"weights": {"scheme": "int4", "method": method}, "calibration": {"tokens": 512}}
    recipe = parse_recipe(body, where="test", default_name="nan")
    with pytest.raises(CorruptCheckpoint, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN"):
        prepare_recipe(str(source), recipe, None, ignore)
    assert store_entries() == []


def test_values_too_large_for_a_scale_are_refused(tmp_path: Path) -> None:
    """Finite weights whose scale overflows are named, and the store stays empty."""
    source = make_tiny_checkpoint(tmp_path / "source", dtype=torch.float32)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, :2] = torch.tensor([3.4e38, -3.4e38])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "mine.yaml").write_text("weights: {scheme: int4, method: rtn}\n")
    with pytest.raises(BuildError, match=r"layers\.1\.mlp\.up_proj\.weight.*too large for int4"):
        prepare(str(source), str(tmp_path / "mine.yaml"), None, ignore)
    assert store_entries() == []


def test_group_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    """A width that does not divide into groups names tensor, width and remedy."""
    source = make_tiny_checkpoint(tmp_path / "source", intermediate_size=144)
    with pytest.raises(RecipeError, match=r"down_proj\.weight' has 144 columns.*group_size 32"):
        prepare(str(source), "int4-fast", None, ignore)
    recipe = parse_recipe(
        {"weights": {"scheme": "int4", "group_size": 64}}, where="test", default_name="coarse"
    )
    assert isinstance(recipe.weights, Int4)
    with pytest.raises(RecipeError, match="group_size 64"):
        make_plan(read_facts(source), recipe)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 300 kB."""
    mount = shutil.which("mount")
    place = tmp_path / "disk"
    place.mkdir()
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if subprocess.run(command, check=False).returncode != 0:
        pytest.skip("this system does not allow a mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)  # noqa: S607


@pytest.mark.parametrize("check_first", [True, False])
def test_full_disk_is_one_line_and_leaves_nothing(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_first: bool
) -> None:
    """A disk too small is refused, also when it fills up only while the weights are written."""
    source = make_tiny_checkpoint(tmp_path / "source", hidden_size=256, intermediate_size=512)
    monkeypatch.setenv("NARROWGATE_HOME", str(small_disk))
    if not check_first:
        monkeypatch.setattr("compression.build._require_space", lambda directory, needed: None)
    with pytest.raises(BuildError, match=r"disk of .* is full.*MB.*NARROWGATE_HOME"):
        prepare(str(source), "int8-fast", None, ignore)
    assert store_entries() == []


def test_unwritable_home_is_one_line(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """A home that is a file is refused with the variable that moves it."""
    (tmp_path / "home").write_text("in the way")
    with pytest.raises(BuildError, match="NARROWGATE_HOME"):
        prepare(str(tiny_llama_dir), "int8-fast", None, ignore)


def test_out_must_be_new(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """An existing directory with content is never written into."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("data")
    with pytest.raises(BuildError, match="not empty"):
        build_to(str(tiny_llama_dir), "int8-fast", None, out, ignore)
    assert [path.name for path in out.iterdir()] == ["precious"]


def test_incomplete_artifact_is_rebuilt(tiny_llama_dir: Path) -> None:
    """An artifact whose weights went missing is noticed and made again."""
    first = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    (first.directory / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="missing"):
        read_manifest(first.directory)
    again = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    assert not again.cached
    assert (again.directory / "model.safetensors").exists()


def test_truncated_artifact_is_rebuilt(tiny_llama_dir: Path) -> None:
    """An artifact whose weights were cut short is noticed by its header and made again."""
    first = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    weights = first.directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    assert not prepare(str(tiny_llama_dir), "int8-fast", None, ignore).cached
    assert weights.read_bytes() == whole


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_changed_artifact_is_rebuilt(tiny_llama_dir: Path, file: str) -> None:
    """An artifact in the store with one changed byte is noticed by its hash and made again."""
    path = prepare(str(tiny_llama_dir), "int8-fast", None, ignore).directory / file
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
    assert not prepare(str(tiny_llama_dir), "int8-fast", None, ignore).cached
    assert path.read_bytes() == whole


def test_remains_of_a_killed_build_are_swept(tiny_llama_dir: Path) -> None:
    """What a killed build left aside goes with the next build of the same digest."""
    done = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    remains = store_dir() / f".building-{done.directory.name}-killed"
    remains.mkdir()
    (remains / "model.safetensors").write_bytes(b"half")
    prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    assert store_entries() == [done.directory.name]


def test_two_builds_of_one_digest_share_a_result(tiny_llama_dir: Path) -> None:
    """Of two that start together one builds, the other waits, says so and finds it."""
    outcomes: list[bool] = []
    seen: list[Progress] = []

    def run() -> None:
        outcomes.append(prepare(str(tiny_llama_dir), "int4-fast", None, seen.append).cached)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, True]
    assert [each.done for each in seen if each.stage == "wait"] == [0, 1]


def test_who_waits_tells_how_far_the_other_build_is(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other one has written grows, so one that hangs can be told from one that works."""
    monkeypatch.setattr("compression.store._TELL_EVERY_S", 0.01)
    done = prepare(str(tiny_llama_dir), "int8-fast", None, ignore)
    other = store_dir() / f".building-{done.directory.name}-other"
    other.mkdir()
    seen: list[str] = []
    lock = FileLock(store_dir() / f"{done.directory.name}.lock")

    def watch(progress: Progress) -> None:
        if progress.stage == "wait":
            seen.append(progress.detail)
            with (other / "model.safetensors").open("ab") as file:
                file.write(b"x" * 65536)
                os.fsync(file.fileno())
            if len(set(seen)) == 3:
                lock.release()

    lock.acquire()
    assert prepare(str(tiny_llama_dir), "int8-fast", None, watch).cached
    assert seen[0] == "for another build of this artifact, 0 bytes so far"
    assert store_entries() == [done.directory.name]


def test_progress_reaches_its_total(tiny_llama_dir: Path) -> None:
    """Each stage counts up to what it announced."""
    seen: list[Progress] = []
    prepare(str(tiny_llama_dir), "int4-fast", None, seen.append)
    for stage in ("hash", "quantize"):
        counts = [event.done for event in seen if event.stage == stage]
        totals = {event.total for event in seen if event.stage == stage}
        assert counts == sorted(counts)
        assert totals == {counts[-1]}


def test_child_process_speaks_json_lines(
    tiny_llama_dir: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The child reports progress, then the artifact, and refuses with exit code 2."""
    words = ["prepare", "--model", str(tiny_llama_dir), "--recipe"]
    command = [sys.executable, "-m", "compression", *words]
    good = subprocess.run([*command, "int4-fast"], capture_output=True, check=True)
    events = [json.loads(line) for line in good.stdout.splitlines()]
    assert events[-1]["event"] == "ready"
    assert Path(events[-1]["directory"], FILE_NAME).exists()
    assert {event["event"] for event in events[:-1]} == {"progress"}
    assert main([*words, "int6"]) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "RecipeError"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that takes a while to build."""
    return make_tiny_checkpoint(
        tmp_path_factory.mktemp("large"),
        num_hidden_layers=24,
        hidden_size=256,
        intermediate_size=1024,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_build_leaves_nothing(large: Path, number: signal.Signals) -> None:
    """A signal in the middle of a build ends it at once with nothing in the store."""
    command = [sys.executable, "-m", "compression", "prepare", "--model", str(large)]
    child = subprocess.Popen([*command, "--recipe", "int4-fast"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == "progress" and event["stage"] == "quantize" and event["done"] >= 5:
            assert any(name.startswith(".building-") for name in os.listdir(store_dir()))
            child.send_signal(number)
            break
    rest = child.stdout.read()
    child.stdout.close()
    assert child.wait(timeout=30) == 128 + number
    assert '"ready"' not in rest
    assert store_entries() == []
