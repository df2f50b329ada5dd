"""Scaled rotations and sliding windows against transformers, however a text is cut into steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compression.architecture import parse_architecture, read_config
from compression.frequencies import frequencies
from gateway.engine.runner import Runner, load_runner
from tests.checkpoints import make_tiny_checkpoint
from tests.engine.test_decoder import FLOOR, edit_config, kld

ORIGINAL = 32
"""Positions of the models here before they are stretched."""
MARGIN = 0.4
"""Logits by which the first token leads the second where bf16 cannot turn them round."""
IDS = [(7 * i * i + 3 * i + 1) % 320 for i in range(80)]
CHUNKS = ([80], [30, 30, 20], [1] * 80, [40, *[1] * 10, 29, 1])

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
LONG = {
    "rope_type": "longrope",
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0, 1.1, 1.2, 1.5, 1.5, 2.0, 2.0, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 6.0, 8.0, 9.0, 9.5],
}
ROPES: dict[str, dict[str, Any]] = {
    "yarn": YARN,
    "yarn, own attention factor": YARN | {"attention_factor": 1.3, "beta_fast": 8, "beta_slow": 2},
    "yarn, mscale": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7, "truncate": False},
    "longrope": LONG,
    "longrope, factor": LONG | {"factor": 3.0},
    "longrope, attention factor": LONG | {"attention_factor": 1.1},
}
WINDOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, all layers": ("mistral", {"sliding_window": 11}),
    "qwen2, upper layers": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 11,
            "max_window_layers": 1,
            "layer_types": None,
        },
    ),
    "qwen3, listed layers": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 11,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "mistral, one position": ("mistral", {"sliding_window": 1}),
}


def load(directory: Path, **options: Any) -> Runner:
    """Load with one thread, as small models need."""
    return load_runner(directory, **({"threads": 1, "max_model_len": None} | options))


def reference(directory: Path) -> Any:
    """Return transformers' model in float32 with eager attention."""
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )


def whole(model: Any, ids: list[int]) -> torch.Tensor:
    """Return the logits ``[n, vocab]`` of a text read at once."""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def pieces(sizes: list[int]) -> Iterator[list[int]]:
    """Yield ``IDS`` in pieces."""
    start = 0
    for size in sizes:
        yield IDS[start : start + size]
        start += size


def stepwise(runner: Runner, sizes: list[int]) -> torch.Tensor:
    """Return the logits ``[80, vocab]`` of ``IDS`` read in steps."""
    cache = runner.new_cache(len(IDS))
    rows = [runner.forward([(cache, piece, len(piece))]) for piece in pieces(sizes)]
    return torch.cat(rows)


def require_same(expected: torch.Tensor, result: torch.Tensor) -> None:
    """Check distributions, and greedy tokens wherever they lead by more than bf16's noise."""
    assert kld(expected, result) < 5 * FLOOR
    top = expected.topk(2, dim=-1)
    is_clear = top.values[:, 0] - top.values[:, 1] > MARGIN
    assert is_clear.sum() > len(expected) / 4
    assert torch.equal(top.indices[is_clear, 0], result.argmax(-1)[is_clear])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("rope", ["yarn", "longrope"])
def test_families_reach_beyond_their_original_length(
    tmp_path: Path, family: str, rope: str
) -> None:
    """Every family turns a text alike, in one piece, in chunks and token by token."""
    directory = make_tiny_checkpoint(tmp_path / "model", family=family, max_position_embeddings=128)
    edit_config(directory, rope_parameters=ROPES[rope] | {"rope_theta": 500.0})
    expected = whole(reference(directory), IDS)
    runner = load(directory)
    for sizes in CHUNKS:
        require_same(expected, stepwise(runner, sizes))


@pytest.mark.parametrize("rope", list(ROPES))
def test_frequencies_equal_transformers(tmp_path: Path, rope: str) -> None:
    """Angles and attention factor are transformers', below and beyond the original length."""
    directory = make_tiny_checkpoint(tmp_path / "model", max_position_embeddings=128)
    edit_config(directory, rope_parameters=ROPES[rope] | {"rope_theta": 500.0})
    rotary = reference(directory).model.rotary_emb
    architecture = parse_architecture(read_config(directory), where="test")
    for length in (20, 100):
        rotary(torch.zeros(1), torch.arange(length).unsqueeze(0))
        found = frequencies(architecture, length)
        assert torch.allclose(rotary.inv_freq.double(), found, rtol=1e-6)
    assert rotary.attention_scaling == pytest.approx(architecture.rope.attention_factor)


def test_longrope_is_chosen_by_the_context(tmp_path: Path) -> None:
    """A context within the original length turns with the short factors."""
    directory = make_tiny_checkpoint(tmp_path / "model", max_position_embeddings=128)
    edit_config(directory, rope_parameters=LONG | {"rope_theta": 500.0})
    expected = whole(reference(directory), IDS[:ORIGINAL])
    assert kld(expected, load(directory, max_model_len=ORIGINAL).score(IDS[:ORIGINAL])) < FLOOR
    assert kld(expected, load(directory).score(IDS[:ORIGINAL])) > 10 * FLOOR


@pytest.mark.parametrize("sizes", CHUNKS)
def test_dynamic_scaling_follows_the_text(tmp_path: Path, sizes: list[int]) -> None:
    """Each step is turned by the length it reaches, as transformers turns it with its cache."""
    directory = make_tiny_checkpoint(tmp_path / "model", max_position_embeddings=ORIGINAL)
    edit_config(
        directory, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}
    )
    runner = load(directory)
    assert runner.max_model_len == 4 * ORIGINAL
    model, past, rows = reference(directory), None, []
    for piece in pieces(sizes):
        with torch.no_grad():
            output = model(torch.tensor([piece]), past_key_values=past, use_cache=True)
        past = output.past_key_values
        rows.append(output.logits[0])
    require_same(torch.cat(rows), stepwise(runner, sizes))


def test_yarn_added_by_hand_stretches_the_context(tmp_path: Path) -> None:
    """Where ``max_position_embeddings`` was left as it was, the factor says how far it reaches."""
    directory = make_tiny_checkpoint(tmp_path / "model", max_position_embeddings=ORIGINAL)
    edit_config(directory, rope_parameters=YARN | {"rope_theta": 500.0})
    runner = load(directory)
    assert runner.max_model_len == 4 * ORIGINAL
    require_same(whole(reference(directory), IDS), runner.score(IDS))


@pytest.mark.parametrize("sizes", CHUNKS)
@pytest.mark.parametrize("name", list(WINDOWS))
def test_windows_equal_transformers(tmp_path: Path, name: str, sizes: list[int]) -> None:
    """A layer's queries see its window, however a text is cut into steps."""
    family, changes = WINDOWS[name]
    directory = make_tiny_checkpoint(tmp_path / "model", family=family)
    plain = load(directory).score(IDS)
    edit_config(directory, **changes)
    expected = whole(reference(directory), IDS)
    require_same(expected, stepwise(load(directory), sizes))
    assert kld(expected, plain) > 10 * FLOOR


@pytest.mark.parametrize("sizes", CHUNKS)
def test_windows_of_heads_that_a_matrix_unit_takes(tmp_path: Path, sizes: list[int]) -> None:
    """Where the processor has one, several rows of a step attend there."""
    directory = make_tiny_checkpoint(tmp_path / "model", family="mistral", head_dim=32)
    edit_config(directory, sliding_window=11)
    require_same(whole(reference(directory), IDS), stepwise(load(directory), sizes))


def test_sequences_of_a_batch_have_windows_of_their_own(tmp_path: Path) -> None:
    """Long and short sequences, new and old, share a step."""
    directory = make_tiny_checkpoint(tmp_path / "model", family="mistral")
    edit_config(directory, sliding_window=11)
    model, runner = reference(directory), load(directory)
    texts = [IDS[:60], IDS[3:9], IDS[20:35]]
    caches = [runner.new_cache(80) for _ in texts]
    runner.forward([(caches[0], texts[0][:40], 0)])
    steps = [texts[0][40:], *texts[1:]]
    rows = runner.forward([(cache, ids, 1) for cache, ids in zip(caches, steps, strict=True)])
    for row, ids in zip(rows, texts, strict=True):
        assert kld(whole(model, ids)[-1:], row.unsqueeze(0)) < 5 * FLOOR


def test_absent_window_is_the_familys_default(tmp_path: Path) -> None:
    """transformers takes 4096 positions for a Mistral that says nothing, and none for null."""
    directory = make_tiny_checkpoint(tmp_path / "model", family="mistral")
    config = read_config(directory) | {"max_position_embeddings": 8192}
    del config["sliding_window"]
    assert parse_architecture(config, where="test").windows == (4096, 4096)
    assert (
        parse_architecture(config | {"sliding_window": None}, where="test").windows == (None,) * 2
    )
