"""What an artifact says of itself: the manifest's truth, `narrowgate inspect`, and tampering."""

import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.table import Table

from compression import digest
from compression.artifact import write_manifest
from compression.catalog import describe_presets, render_presets
from compression.checked_plan import plan_checked
from compression.errors import ArtifactError, RecipeError
from compression.events import Progress, ignore
from compression.facts import read_facts
from compression.fidelity_record import SliceFidelity
from compression.inspection import render_manifest
from compression.loading import Checkpoint
from compression.manifest import FILE_NAME, Manifest, RefusalRecord, read_manifest
from compression.plan import make_plan
from compression.prepare import build_to
from compression.presets import PRESETS, load_recipe
from compression.verification import verify
from compression.weights.codes import Codes
from gateway.cli import main
from tests.checkpoints import make_tiny_checkpoint


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def built(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an int4 artifact with a kept layer."""
    root = tmp_path_factory.mktemp("built")
    (root / "mine.yaml").write_text(
        "weights: {scheme: int4, method: best}\nembeddings: {scheme: int8}\n"
        "keep: ['re:.*1.mlp.down_proj']\ncalibration: {tokens: 512}\n"
    )
    build_to(str(tiny_llama_dir), str(root / "mine.yaml"), None, root / "out", ignore)
    return root / "out"


@pytest.fixture
def artifact(built: Path, tmp_path: Path) -> Path:
    """Return a copy of it that a test may damage."""
    return shutil.copytree(built, tmp_path / "out")


def printed(tables: Iterable[Table]) -> str:
    """Return tables as a wide terminal shows them."""
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    for table in tables:
        console.print(table)
    return screen.getvalue()


def manifest_of(directory: Path) -> Manifest:
    """Return the manifest of an artifact."""
    manifest = read_manifest(directory)
    assert manifest is not None
    return manifest


def test_manifest_figures_agree_with_the_files(artifact: Path, tiny_llama_dir: Path) -> None:
    """Bytes, bits, hashes and the memory bound are those of what lies there."""
    manifest = manifest_of(artifact)
    assert set(manifest.files) == {path.name for path in artifact.iterdir()} - {FILE_NAME}
    linears = [each for each in manifest.tensors if each.name.endswith("proj.weight")]
    count = sum(each.shape[0] * each.shape[1] for each in linears)
    assert manifest.linear_bits == 8 * sum(each.bytes_in_memory for each in linears) / count
    assert manifest.linear_bits_stored == 8 * sum(each.bytes_stored for each in linears) / count
    payload = (artifact / "model.safetensors").stat().st_size
    assert 0 < payload - manifest.bytes_stored < 8192
    assert manifest.peak_build_bytes is not None
    assert manifest.peak_declared_bytes is not None
    # A process that has memory to spare from earlier work need not grow at all.
    assert 0 <= manifest.peak_build_bytes <= manifest.peak_declared_bytes
    source = read_facts(tiny_llama_dir)
    assert set(manifest.source.files) == set(source.files)
    assert manifest.bytes_before == source.num_bytes


def test_each_kind_of_layer_is_timed_once(artifact: Path) -> None:
    """Fused units count as one layer; what is kept is not timed."""
    shapes = {(each.rows, each.columns): each.count for each in manifest_of(artifact).kernels}
    assert shapes == {(128, 64): 2, (64, 64): 2, (256, 64): 2, (64, 128): 1}
    for kernel in manifest_of(artifact).kernels:
        assert kernel.scheme == "int4-g32-asym"
        assert kernel.kernel == "int4x16"
        assert kernel.microseconds > 0
        assert kernel.bf16_microseconds > 0


def test_tables_show_what_counts(artifact: Path) -> None:
    """Every part of the record can be read on a terminal, refusals and fidelity too."""
    slice_ = SliceFidelity(
        name="german",
        kld_mean=0.1234,
        kld_mean_ci95=(0.1, 0.15),
        kld_p99=1.25,
        top1=0.81,
        top1_ci95=(0.78, 0.84),
        tokens=777,
    )
    refusal = RefusalRecord(subject="kv_cache", requested="int8", reason="[nobody] can")
    manifest = manifest_of(artifact).model_copy(
        update={"fidelity": (slice_,), "refusals": (refusal,)}
    )
    shown = printed(render_manifest(manifest))
    for expected in (
        "mine, " + manifest.recipe_digest[:12],
        "model.layers.*.mlp.down_proj.weight",
        "kept by the recipe",
        "stored as is, quantized at load",
        "int4x16",
        "256x64",
        "0.1234 (0.1000 to 0.1500)",
        "81.0 (78.0 to 84.0)",
        "[nobody] can",
    ):
        assert expected in shown


def test_names_stay_whole_in_a_narrow_terminal(artifact: Path) -> None:
    """At 80 columns no name of a tensor or a scheme is broken."""
    screen = io.StringIO()
    console = Console(file=screen, width=80)
    for table in render_manifest(manifest_of(artifact), width=80):
        console.print(table)
    lines = screen.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for expected in ("layers.*.self_attn.q_proj", "layers.*.mlp.down_proj", "int4-g32-asym"):
        assert any(expected in line for line in lines)
    assert any("kept by the recipe" in line for line in lines)


def test_command_prints_tables_and_json(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`inspect` is for people, `--json` is the manifest, `--verify` says so."""
    assert main(["inspect", str(artifact), "--verify"]) == 0
    assert "every file is as it was built" in capsys.readouterr().out
    assert main(["inspect", str(artifact)]) == 0
    assert "not hashed" in capsys.readouterr().out
    assert main(["inspect", str(artifact), "--json"]) == 0
    shown = Manifest.model_validate(json.loads(capsys.readouterr().out))
    assert shown == manifest_of(artifact)


def test_command_refuses_what_is_no_artifact(
    tiny_llama_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain checkpoint and a place without anything are told apart from artifacts."""
    for directory in (tiny_llama_dir, tmp_path / "none"):
        assert main(["inspect", str(directory)]) == 2
        assert "is no artifact" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_tampering_is_found(artifact: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One changed byte, the size and the time as before: `--verify` names the file."""
    verify(artifact, manifest_of(artifact))
    path = artifact / file
    status = path.stat()
    body = bytearray(path.read_bytes())
    body[-2] ^= 1
    path.write_bytes(body)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert main(["inspect", str(artifact), "--verify"]) == 2
    assert f"{file}' was changed after it was built" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_changed_artifact_is_not_loaded(artifact: Path, file: str) -> None:
    """Loading checks weights and config, also when they were loaded before."""
    with Checkpoint(artifact):
        pass
    body = bytearray((artifact / file).read_bytes())
    body[-2] ^= 1
    (artifact / file).write_bytes(body)
    with pytest.raises(ArtifactError, match="was changed after it was built"), Checkpoint(artifact):
        pass


@pytest.mark.parametrize(
    "file", ["model.safetensors.index.json", "evil.safetensors", "added_tokens.json"]
)
def test_file_that_was_put_beside_the_weights(
    artifact: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an engine would load although the build did not write it is refused by name."""
    shutil.copyfile(artifact / "model.safetensors", artifact / "evil.bak")
    index = {"weight_map": {"model.norm.weight": "evil.bak"}}
    (artifact / file).write_text(json.dumps(index))
    expected = f"{file}' was not there when the artifact was built"
    with pytest.raises(ArtifactError, match=expected), Checkpoint(artifact):
        pass
    assert main(["inspect", str(artifact), "--verify"]) == 2
    assert expected in capsys.readouterr().err


def test_table_is_quantized_in_pieces(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes of an embedding do not depend on how many rows are quantized at once."""
    with Checkpoint(artifact) as checkpoint:
        whole = checkpoint.embedding("model.embed_tokens.weight")
        monkeypatch.setattr("compression.loading._PIECE_BYTES", 4 * 64 * 7)
        pieces = checkpoint.embedding("model.embed_tokens.weight")
    if not isinstance(whole, Codes) or not isinstance(pieces, Codes):
        pytest.fail("the embedding of this artifact is int8")
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.scales, pieces.scales)


def test_warm_load_hashes_weights_only_once(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that were verified are remembered; a copy elsewhere is read again."""
    hashed: list[str] = []
    hash_file = digest.hash_file

    def watched(path: Path, *rest: object) -> str:
        hashed.append(path.name)
        return hash_file(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(digest, "hash_file", watched)
    with Checkpoint(artifact):
        assert hashed == ["model.safetensors"]
    with Checkpoint(artifact):
        assert hashed == ["model.safetensors"]


def test_verification_counts_up_to_all_bytes(artifact: Path) -> None:
    """Progress ends at the size of all files."""
    seen: list[Progress] = []
    verify(artifact, manifest_of(artifact), seen.append)
    total = sum(path.stat().st_size for path in artifact.iterdir() if path.name != FILE_NAME)
    assert [event.done for event in seen] == sorted(event.done for event in seen)
    assert seen[-1].done == seen[-1].total == total


def test_manifest_of_another_format_says_rebuild(artifact: Path) -> None:
    """An older or newer manifest is told by its number, a damaged one by the field."""
    path = artifact / FILE_NAME
    fields = json.loads(path.read_text())
    for number, age in ((1, "an older"), (3, "a newer")):
        path.write_text(json.dumps(fields | {"format_version": number}))
        with pytest.raises(ArtifactError, match=rf"format {number}, of {age} .*again"):
            read_manifest(artifact)
    path.write_text(json.dumps(fields | {"bytes_stored": "many"}))
    with pytest.raises(ArtifactError, match=r"unreadable \(bytes_stored: .*again") as caught:
        read_manifest(artifact)
    assert "\n" not in str(caught.value)


def test_fidelity_can_be_added_later(artifact: Path) -> None:
    """A manifest is replaced as a whole, and the artifact still verifies."""
    slice_ = SliceFidelity(
        name="code",
        kld_mean=0.2,
        kld_mean_ci95=(0.1, 0.3),
        kld_p99=1.0,
        top1=0.9,
        top1_ci95=(0.8, 1.0),
        tokens=10,
    )
    write_manifest(manifest_of(artifact).model_copy(update={"fidelity": (slice_,)}), artifact)
    assert manifest_of(artifact).fidelity == (slice_,)
    verify(artifact, manifest_of(artifact))


def test_recipes_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a model there are bits, and no sizes."""
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PRESETS)
    assert "4.75" in shown
    assert "MB" not in shown


def test_recipes_for_a_model_are_its_plans(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model, sizes are those of the plan; the command asks a child for them."""
    facts = read_facts(tiny_llama_dir)
    rows = {row["name"]: row for row in describe_presets(facts)}
    plan = make_plan(facts, PRESETS["int4"])
    assert rows["int4"]["bytes_in_memory"] == plan.bytes_in_memory
    assert rows["int4"]["bytes_stored"] == plan.bytes_stored
    assert rows["int8"]["bits"] == pytest.approx(8 + 16 / 72)
    assert main(["recipes", "--model", str(tiny_llama_dir)]) == 0
    shown = capsys.readouterr().out
    assert f"{100 * plan.bytes_in_memory / facts.num_bytes:.0f} %" in shown


def test_one_recipe_as_a_file_to_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed reads back as the same treatment, under the name of its file."""
    assert main(["recipes", "w4-k8v4"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_recipe(str(path)) == PRESETS["w4-k8v4"].model_copy(update={"name": "mine"})
    assert main(["recipes", "int6"]) == 2
    assert "unknown recipe 'int6'" in capsys.readouterr().err


def test_dry_run_tells_what_a_build_would_be(
    tiny_llama_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row of the recipe, and nothing on the disk; without it a place must be named."""
    words = ["build", f"--model={tiny_llama_dir}", "--recipe=int8"]
    assert main([*words, "--dry-run"]) == 0
    plan = make_plan(read_facts(tiny_llama_dir), PRESETS["int8"])
    assert f"{plan.peak_bytes / 1e6:.0f}" in capsys.readouterr().out
    assert main(words) == 2
    assert "build needs --out" in capsys.readouterr().err


def test_recipes_that_prune_are_listed_as_they_are_built(tmp_path: Path) -> None:
    """Sizes are of what is left; what a build would refuse has the build's own reason."""
    source = make_tiny_checkpoint(tmp_path / "model", hidden_size=128, num_attention_heads=8)
    rows = {row["name"]: row for row in describe_presets(read_facts(source))}
    pruned, whole = rows["w4-kv8-heads"], rows["w4-kv8"]
    built = build_to(str(source), "w4-kv8-heads", None, tmp_path / "out", ignore).manifest
    assert built is not None
    assert pruned["bytes_in_memory"] == built.bytes_in_memory < whole["bytes_in_memory"]
    assert pruned["bytes_stored"] == built.bytes_stored
    assert pruned["peak_bytes"] == built.peak_declared_bytes
    assert whole["kv_bytes_per_token"] == 2 * 2 * 2 * (16 + 2)
    alone = read_facts(make_tiny_checkpoint(tmp_path / "alone", num_key_value_heads=4))
    refused = {row["name"]: row["refused"] for row in describe_presets(alone)}
    assert "query_heads" in refused["w4-kv8-heads"]
    with pytest.raises(RecipeError) as caught:
        plan_checked(alone, PRESETS["w4-kv8-heads"])
    assert str(caught.value) == refused["w4-kv8-heads"]


def test_recipes_say_what_does_not_fit(tmp_path: Path) -> None:
    """A preset that this model cannot have is listed with the reason, the others with sizes."""
    facts = read_facts(make_tiny_checkpoint(tmp_path / "odd", intermediate_size=144))
    rows = describe_presets(facts)
    refused = {row["name"] for row in rows if row["refused"]}
    assert "int4" in refused
    assert "int8" not in refused
    assert "144 columns" in printed(render_presets(rows, "odd"))
