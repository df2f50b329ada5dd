"""Architectures that run through transformers' modelling, against transformers itself."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compression.errors import CorruptCheckpoint, UnsupportedArchitecture
from compression.events import ignore
from compression.loading import Checkpoint
from compression.prepare import build_to
from gateway.engine.general.decoder import GeneralDecoder
from gateway.engine.runner import Runner, load_runner
from tests.engine.general_families import FAMILIES, save_model
from tests.engine.test_decoder import FLOOR, kld
from tests.processor import ROUNDS_SUMS

IDS = [(7 * i * i + 3 * i + 1) % 320 for i in range(40)]
SIZES = [20, 7, *[1] * 13]
MARGIN = 0.16
"""By which the first token leads the second where bf16 cannot turn them round; in their spread."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))


def load(directory: Path) -> Runner:
    """Load with one thread, as small models need."""
    return load_runner(directory, threads=1, max_model_len=None)


def reference(directory: Path) -> torch.Tensor:
    """Return transformers' float32 logits ``[40, vocab]`` of ``IDS``, with eager attention."""
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


def dequantized(source: Path, artifact: Path, names: list[str]) -> torch.Tensor:
    """Return the same of the source with what the artifact's codes stand for, in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad(), Checkpoint(artifact) as checkpoint:
        for name in names:
            weight = checkpoint.weight(name)
            dense = weight if isinstance(weight, torch.Tensor) else weight.dequantize()
            model.get_parameter(name).copy_(dense)
        logits: torch.Tensor = model(torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


def stepwise(runner: Runner) -> torch.Tensor:
    """Return the logits ``[40, vocab]`` of ``IDS`` read in chunks, then token by token."""
    cache, start, rows = runner.new_cache(len(IDS)), 0, []
    for size in SIZES:
        rows.append(runner.forward([(cache, IDS[start : start + size], size)]))
        start += size
    return torch.cat(rows)


def require_same(expected: torch.Tensor, result: torch.Tensor, *, num_flips: int = 0) -> None:
    """Check distributions, and greedy tokens wherever they lead by more than bf16's noise.

    ``num_flips`` positions may differ: a router between two equal experts is decided by noise.
    """
    p, q = expected.log_softmax(-1), result.log_softmax(-1)
    best = (p.exp() * (p - q)).sum(-1).argsort()[: len(expected) - num_flips]
    expected, result = expected[best], result[best]
    assert kld(expected, result) < (3 if ROUNDS_SUMS else 2) * FLOOR
    top = expected.topk(2, dim=-1)
    is_clear = top.values[:, 0] - top.values[:, 1] > MARGIN * expected.std()
    assert is_clear.sum() > len(expected) / 8
    assert torch.equal(top.indices[is_clear, 0], result.argmax(-1)[is_clear])


@pytest.mark.parametrize("family", list(FAMILIES))
def test_equals_transformers(tmp_path: Path, family: str) -> None:
    """A text gives transformers' logits, read at once, in chunks and token by token."""
    directory = save_model(family, tmp_path / "model")
    expected = reference(directory)
    runner = load(directory)
    assert isinstance(runner.decoder, GeneralDecoder)
    num_flips = 4 if "experts" in str(FAMILIES[family][1]) else 0
    require_same(expected, runner.score(IDS), num_flips=num_flips)
    require_same(expected, stepwise(runner), num_flips=num_flips)


def test_batch_equals_one_by_one(tmp_path: Path) -> None:
    """Sequences of different lengths in one call do not touch each other."""
    runner = load(save_model("gemma2", tmp_path / "model"))
    texts = [IDS[:5], IDS[3:17], IDS[:1]]
    alone = [runner.forward([(runner.new_cache(32), ids, 1)])[0] for ids in texts]
    together = runner.forward([(runner.new_cache(32), ids, 1) for ids in texts])
    for row, expected in zip(together, alone, strict=True):
        assert kld(expected.unsqueeze(0), row.unsqueeze(0)) < FLOOR


def test_dynamic_scaling_follows_one_text(tmp_path: Path) -> None:
    """Beyond the original length a text is turned by its own length, whatever ran before it."""
    directory = save_model("gemma", tmp_path / "model")
    path = directory / "config.json"
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0}
    changes = {"max_position_embeddings": 16, "rope_parameters": rope}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    runner = load(directory)
    assert runner.max_model_len == 64
    runner.score([5] * 60)
    require_same(reference(directory), runner.score(IDS))


@pytest.mark.parametrize(
    ("recipe", "label"), [("int8", "int8-rows"), ("int4-fast", "int4-g32-asym")]
)
@pytest.mark.parametrize("family", ["gpt_neox", "gemma2", "olmo2"])
def test_artifacts_are_served_packed(tmp_path: Path, family: str, recipe: str, label: str) -> None:
    """Every linear layer that the artifact holds as codes runs on them, and on nothing else."""
    source = save_model(family, tmp_path / "source")
    built = build_to(str(source), recipe, None, tmp_path / "out", ignore)
    assert built.manifest is not None
    runner = load(tmp_path / "out")
    quantized = [each for each in built.manifest.tensors if each.relative_error is not None]
    expected = dequantized(source, tmp_path / "out", [each.name for each in quantized])
    require_same(expected, runner.score(IDS))
    require_same(expected, stepwise(runner))
    assert kld(reference(source), expected) > 5 * kld(expected, runner.score(IDS))
    info = runner.info()
    live = {scheme: count for scheme, count in info["schemes"].items() if scheme != "none"}
    assert live == Counter(each.applied for each in quantized)
    assert live[label] >= 2 * 4
    assert info["weights_bytes"] < info["weights_bytes_before"]


def test_nf4_artifact_is_served(tmp_path: Path) -> None:
    """Codes of bitsandbytes' layout are put in place too."""
    source = save_model("phi", tmp_path / "source")
    build_to(str(source), "nf4", None, tmp_path / "out", ignore)
    runner = load(tmp_path / "out")
    assert any(label.startswith("nf4") for label in runner.info()["schemes"])
    assert FLOOR < kld(reference(source), runner.score(IDS)) < 1


@pytest.mark.parametrize(("scheme", "low", "high"), [("int8", 1e-7, 0.01), ("int4", 1e-4, 0.5)])
def test_quantized_cache_is_used(tmp_path: Path, scheme: str, low: float, high: float) -> None:
    """Keys and values are kept as the recipe asks, and the logits show it."""
    source = save_model("gemma2, wide heads", tmp_path / "source")
    recipe = tmp_path / "mine.yaml"
    group = ", group_size: 32" if scheme == "int4" else ""
    kind = f"{{scheme: {scheme}{group}}}"
    recipe.write_text(f"weights: {{scheme: int8}}\nkv_cache: {{key: {kind}, value: {kind}}}\n")
    build_to(str(source), str(recipe), None, tmp_path / "out", ignore)
    runner = load(tmp_path / "out")
    build_to(str(source), "int8", None, tmp_path / "plain", ignore)
    plain = load(tmp_path / "plain")
    assert runner.info()["kv_bytes_per_token"] < 0.7 * plain.info()["kv_bytes_per_token"]
    assert low < kld(plain.score(IDS), runner.score(IDS)) < high
    assert low < kld(plain.score(IDS), stepwise(runner)) < high


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "mamba": (
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba", "num_hidden_layers": 2},
        r"'MambaForCausalLM' is not supported.*recurrent states.*vLLM",
    ),
    "hybrid": (
        {
            "architectures": ["Lfm2ForCausalLM"],
            "model_type": "lfm2",
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
        },
        r"'Lfm2ForCausalLM' is not supported.*caches more than keys and values",
    ),
    "latents": (
        {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "kv_lora_rank": 512,
        },
        r"'DeepseekV3ForCausalLM' is not supported.*MLA.*vLLM",
    ),
    "encoder": (
        {
            "architectures": ["T5ForConditionalGeneration"],
            "model_type": "t5",
            "is_encoder_decoder": True,
        },
        r"'T5ForConditionalGeneration' is not supported.*has an encoder",
    ),
    "masked": (
        {"architectures": ["BertForMaskedLM"], "model_type": "bert", "num_hidden_layers": 1},
        r"'BertForMaskedLM' is not supported.*builds a 'BertLMHeadModel'",
    ),
    "bidirectional": (
        {"architectures": ["BertLMHeadModel"], "model_type": "bert", "num_hidden_layers": 1},
        r"'BertLMHeadModel' is not supported.*both directions",
    ),
    "pictures": (
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": {"num_hidden_layers": 1},
            "vision_config": {"num_hidden_layers": 1},
        },
        r"'Gemma3ForConditionalGeneration' is not supported.*parts beyond text",
    ),
    "own code": (
        {
            "architectures": ["SecretForCausalLM"],
            "model_type": "secret",
            "auto_map": {
                "AutoConfig": "configuration_secret.SecretConfig",
                "AutoModelForCausalLM": "modeling_secret.SecretForCausalLM",
            },
        },
        r"'SecretForCausalLM' is not supported.*code from the checkpoint.*vLLM",
    ),
    "unheard of": (
        {"architectures": ["NoSuchForCausalLM"], "model_type": "no-such"},
        r"transformers builds no causal language model",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_not_served_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """The config alone decides: there are no weights here to read."""
    config, expected = REFUSED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedArchitecture, match=expected) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_and_misshapen_weights_are_refused(tmp_path: Path) -> None:
    """Nothing is filled with random numbers."""
    directory = save_model("phi", tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.fc1.weight"
    weight = weights.pop(name)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match=r"lacks the tensors of model\.layers\.1\.mlp\.fc1"):
        load(directory)
    weights[name] = weight[:-1].contiguous()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match="do not fit the config"):
        load(directory)


def test_lean_families_import_no_modelling(tiny_llama_dir: Path) -> None:
    """What the general way needs costs the lean one nothing."""
    program = (
        "import sys; from pathlib import Path; from gateway.engine.runner import load_runner; "
        "load_runner(Path(sys.argv[1]), threads=1, max_model_len=None); "
        "print('transformers' in sys.modules)"
    )
    words = [sys.executable, "-c", program, str(tiny_llama_dir)]
    ended = subprocess.run(words, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
