"""The frontier: one evaluator for all, sizes counted from what is stored."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.frontier import digest_of, kept, parse
from benchmarks.frontier_evaluator import Cut, Evaluator
from benchmarks.frontier_page import plot, render
from benchmarks.frontier_points import (
    Point,
    Weights,
    artifact_point,
    peer_points,
    served_weights,
)
from benchmarks.frontier_scores import Scorer
from benchmarks.peers import exchange
from benchmarks.peers.exchange import EMBEDDING, Sizes, linears
from compression.errors import ArtifactError
from compression.evaluation import cut
from compression.events import ignore
from compression.prepare import build_to
from tests.checkpoints import TRAINING_LINES

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def windows(tiny_llama_dir: Path) -> Cut:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    texts = {"prose": TRAINING_LINES[0], "code": TRAINING_LINES[2]}
    return {name: cut(name, text * 3, tokenizer) for name, text in texts.items()}


@pytest.fixture(scope="module")
def evaluator(tiny_llama_dir: Path, windows: Cut) -> Evaluator:
    return Evaluator(tiny_llama_dir, windows)


@pytest.fixture(scope="module")
def artifact(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("frontier") / "int4"
    return build_to(str(tiny_llama_dir), "int4", None, out, ignore).directory


def changed(checkpoint: Path) -> dict[str, Tensor]:
    """Return the linears with the sign of one of them flipped."""
    weights = {name: weight.to(torch.float32) for name, weight in linears(checkpoint)}
    return weights | {QUERY: -weights[QUERY]}


def peer_result(checkpoint: Path, directory: Path) -> None:
    """Write a peer's result of 1,000 bytes of linears."""
    sizes = Sizes("peer", "peer 1", "flips a sign", 1000, 24, "bf16")
    exchange.write(directory, changed(checkpoint), sizes)


def test_the_full_weights_have_no_divergence_also_after_others(
    tiny_llama_dir: Path, evaluator: Evaluator
) -> None:
    full = [(name, weight.to(torch.float32)) for name, weight in linears(tiny_llama_dir)]
    other, _ = evaluator.score(changed(tiny_llama_dir).items(), label="flipped")
    assert min(fidelity.kld_mean for fidelity in other.values()) > 1e-3
    # What the other method changed is put back, given or not.
    for weights in (full, []):
        slices, pooled = evaluator.score(weights, label="full")
        assert set(slices) == {"prose", "code"}
        assert pooled.kld_max == 0.0
        assert pooled.top1 == 1.0


def test_the_output_head_counts(tiny_llama_dir: Path, evaluator: Evaluator) -> None:
    with_noise = evaluator._state[EMBEDDING] + 0.05
    _, pooled = evaluator.score([(EMBEDDING, with_noise)], label="embedding")
    assert pooled.kld_mean > 0.0


def test_weights_that_would_be_rounded_are_refused(
    evaluator: Evaluator, tmp_path: Path, tiny_llama_dir: Path
) -> None:
    half = {QUERY: changed(tiny_llama_dir)[QUERY].to(torch.bfloat16)}
    with pytest.raises(ValueError, match="float32"):
        evaluator.score(half.items(), label="bf16")
    with pytest.raises(ValueError, match="float32"):
        exchange.write(tmp_path / "peer", half, Sizes("p", "1", "", 1, 1, "bf16"))
    assert not exchange.is_written(tmp_path / "peer")


def test_an_artifact_is_counted_and_read_as_it_is_served(
    tiny_llama_dir: Path, artifact: Path
) -> None:
    point = artifact_point(artifact, "int4")
    full = {name: weight.to(torch.float32) for name, weight in linears(tiny_llama_dir)}
    # A bf16 scale and a zero of a byte for each group of 32.
    expected = sum(
        weight.shape[0] * (weight.shape[1] // 2 + 3 * weight.shape[1] // 32)
        for weight in full.values()
    )
    assert point.sizes.linear_bytes == expected
    assert point.sizes.embedding_bytes == 320 * 64 + 2 * 320
    served = dict(served_weights(artifact))
    assert set(served) == {*full, EMBEDDING}
    for name, weight in full.items():
        error = (served[name] - weight).norm() / weight.norm()
        assert 0.0 < error < 0.15, name


def test_a_full_checkpoint_is_no_artifact(tiny_llama_dir: Path) -> None:
    with pytest.raises(ArtifactError, match="no artifact"):
        artifact_point(tiny_llama_dir, "full")


def test_scores_are_measured_once_for_each_result_and_text(
    tiny_llama_dir: Path, windows: Cut, tmp_path: Path, artifact: Path
) -> None:
    peer_result(tiny_llama_dir, tmp_path / "peer")
    (tmp_path / "half-done").mkdir()
    (peer,) = peer_points(tmp_path)
    first = Scorer(tiny_llama_dir, windows, tmp_path / "scores").figures(peer)
    remembered = list((tmp_path / "scores").iterdir())
    assert first["bytes"] == 1024
    assert first["linear_bits"] == pytest.approx(8000 / sum_weights(tiny_llama_dir))
    assert first["worst_kld"] == max(first["slices"].values())
    assert first["kld"] == pytest.approx(sum(first["slices"].values()) / 2)

    def unreadable(directory: Path) -> Weights:
        raise AssertionError(f"{directory} was read again")

    again = Point(peer.directory, peer.sizes, peer.stored_bytes, is_ours=False, read=unreadable)
    assert Scorer(tiny_llama_dir, windows, tmp_path / "scores").figures(again) == first
    fewer = {"prose": windows["prose"]}
    other = Scorer(tiny_llama_dir, fewer, tmp_path / "scores").figures(peer)
    assert set(other["slices"]) == {"prose"}
    assert len(list((tmp_path / "scores").iterdir())) == len(remembered) + 1


def test_the_page_has_a_row_for_each_method(
    tiny_llama_dir: Path, windows: Cut, tmp_path: Path, artifact: Path
) -> None:
    peer_result(tiny_llama_dir, tmp_path / "peer")
    scorer = Scorer(tiny_llama_dir, windows, tmp_path / "scores")
    points = [artifact_point(artifact, "int4"), *peer_points(tmp_path)]
    figures = [scorer.figures(point) for point in points]
    machine = {"processor": "p", "cores": 2, "memory_gb": 1, "kernel": "k", "versions": {}}
    results = {"command": "c", "machine": machine, "tokens": 9, "points": figures}
    names = [line.split(" | ")[0] for line in render(results).splitlines()]
    # The smaller one first; the table of versions has a row for each too.
    assert [name for name in names if name in {"| peer", "| **int4**"}][:2] == [
        "| peer",
        "| **int4**",
    ]
    assert f" {figures[0]['kld']:.4f} |" in render(results)
    for mark in ("kept", "kept, text not checked"):
        one = {**results, "points": [figures[0] | {"kept": mark}]}
        assert f"| **int4** ({mark}) |" in render(one)
    plot(figures, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000


def sum_weights(checkpoint: Path) -> int:
    return sum(weight.numel() for _, weight in linears(checkpoint))


def test_points_of_the_last_results_are_kept_as_they_are(tmp_path: Path) -> None:
    """Only where they are of the same text and model, and only those that there are."""
    points = [{"name": "mixed-5.0", "kld": 0.06}, {"name": "int4", "kld": 0.2}]
    last = {"tokens": 9, "digest": "d", "points": points}
    (tmp_path / "frontier.json").write_text(json.dumps(last))
    words = ["--out", str(tmp_path), "--keep"]
    assert kept(parse([*words, "mixed-5.0"]), 9, "d") == [points[0] | {"kept": "kept"}]
    with pytest.raises(SystemExit, match="are of 9 tokens, not 10"):
        kept(parse([*words, "mixed-5.0"]), 10, "d")
    with pytest.raises(SystemExit, match="are of another text or model"):
        kept(parse([*words, "mixed-5.0"]), 9, "e")
    with pytest.raises(SystemExit, match=r"have no mixed-6\.0"):
        kept(parse([*words, "mixed-6.0"]), 9, "d")
    assert kept(parse([]), 9, "d") == []


def test_points_of_results_that_say_no_text_are_marked(tmp_path: Path) -> None:
    """They are kept, and stay unchecked also when they are kept again from results that do."""
    file = tmp_path / "frontier.json"
    file.write_text(json.dumps({"tokens": 9, "points": [{"name": "int4", "kld": 0.2}]}))
    options = parse(["--out", str(tmp_path), "--keep", "int4"])
    first = kept(options, 9, "d")
    assert first == [{"name": "int4", "kld": 0.2, "kept": "kept, text not checked"}]
    file.write_text(json.dumps({"tokens": 9, "digest": "d", "points": first}))
    assert kept(options, 9, "d") == first


def test_the_digest_is_of_text_and_model(
    tiny_llama_dir: Path, windows: Cut, tmp_path: Path
) -> None:
    """As many tokens of another text, or other weights, are told apart."""
    same = digest_of(tiny_llama_dir, dict(windows))
    assert digest_of(tiny_llama_dir, windows) == same
    parts = windows["prose"]
    other = replace(parts[0], token_ids=parts[0].token_ids[::-1])
    assert digest_of(tiny_llama_dir, {**windows, "prose": [other, *parts[1:]]}) != same
    shutil.copytree(tiny_llama_dir, tmp_path / "copy")
    assert digest_of(tmp_path / "copy", windows) == same
    weights = next((tmp_path / "copy").glob("*.safetensors"))
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert digest_of(tmp_path / "copy", windows) != same
