"""Families that are known by their outline only: quantized without data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    PhiConfig,
)

from compression.errors import CorruptCheckpoint, RecipeError, UnsupportedArchitecture
from compression.events import ignore
from compression.prepare import build_to, prepare
from tests.checkpoints import make_tokenizer, randomize
from tests.engine.general_families import SIZES

OTHERS: dict[str, Any] = {
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "phi": PhiConfig(**SIZES),
    "gemma": GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=16),
}

# transformers warns of what is asked for here: another way of loading than the artifact's default.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own."""
    monkeypatch.setenv("NARROWGATE_HOME", str(tmp_path / "home"))


def save(config: Any, directory: Path) -> Path:
    """Save a checkpoint with random weights."""
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, seed=0)
    model.to(torch.bfloat16).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def logits(directory: Path, **options: Any) -> torch.Tensor:
    """Return what transformers makes of a directory."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)
    with torch.no_grad():
        result: torch.Tensor = model(torch.arange(3, 40).unsqueeze(0)).logits
    return result


@pytest.mark.parametrize("family", list(OTHERS))
def test_int8_loads_in_transformers(tmp_path: Path, family: str) -> None:
    """Every linear layer but the head is int8, and the logits stay near the source's."""
    source = save(OTHERS[family], tmp_path / "source")
    built = build_to(str(source), "int8", None, tmp_path / "out", ignore)
    assert built.manifest is not None
    quantized = [each.name for each in built.manifest.tensors if each.relative_error is not None]
    model = AutoModelForCausalLM.from_config(OTHERS[family])
    head = model.get_output_embeddings()
    assert sorted(quantized) == sorted(
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    assert built.manifest.kernels == ()
    dense = CompressedTensorsConfig(dequantize=True)
    full, result = logits(source), logits(tmp_path / "out", quantization_config=dense)
    assert 0 < float((result - full).norm() / full.norm()) < 0.1


def test_what_is_not_done_is_recorded_as_refused(tmp_path: Path) -> None:
    """An int8 embedding is in the manifest, with the reason; an int8 cache is served."""
    source = save(OTHERS["phi"], tmp_path / "source")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "weights: {scheme: int4}\nembeddings: {scheme: int8}\n"
        "kv_cache: {key: {scheme: int8}, value: {scheme: int8}}\n"
    )
    built = build_to(str(source), str(recipe), None, tmp_path / "out", ignore)
    assert built.manifest is not None
    refused = {each.subject: each.reason for each in built.manifest.refusals}
    assert set(refused) == {"embeddings"}
    assert "tables of PhiForCausalLM are served as they are" in refused["embeddings"]


def test_model_that_is_mostly_tables(tmp_path: Path) -> None:
    """Where most bytes stay as they are, the manifest says so."""
    config = PhiConfig(**(SIZES | {"vocab_size": 4096}))
    source = save(config, tmp_path / "source")
    built = build_to(str(source), "int4-fast", None, tmp_path / "out", ignore)
    assert built.manifest is not None
    refused = {each.subject: each.reason for each in built.manifest.refusals}
    assert "% of the bytes of PhiForCausalLM's matrices are linear layers" in refused["weights"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("weights: {scheme: int4, method: gptq}", r"method .gptq. needs a known family.*int4-fast"),
        ("weights: {scheme: int8}\nprune: {query_heads: 1}", r"'prune' needs a known family"),
        ("weights: {scheme: none}", r"leaves every layer as it is"),
    ],
)
def test_what_needs_a_known_family_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """Calibration and pruning are refused before anything is written."""
    source = save(OTHERS["phi"], tmp_path / "source")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecipeError, match=expected):
        build_to(str(source), str(tmp_path / "mine.yaml"), None, tmp_path / "out", ignore)
    assert not (tmp_path / "out").exists()


def test_prepare_makes_what_the_engine_serves(tmp_path: Path) -> None:
    """A family without linear layers is served in full, any other under a recipe too."""
    source = save(OTHERS["gpt_neox"], tmp_path / "source")
    prepared = prepare(str(source), "int8", None, ignore)
    assert prepared.manifest is not None
    assert prepared.manifest.source.architecture == "GPTNeoXForCausalLM"
    plain = save(GPT2Config(vocab_size=320, n_embd=64, n_layer=1, n_head=4), tmp_path / "plain")
    assert prepare(str(plain), "full", None, ignore).directory == plain
    (plain / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CorruptCheckpoint, match="truncated"):
        prepare(str(plain), "full", None, ignore)


def test_model_without_linear_layers_is_refused(tmp_path: Path) -> None:
    """GPT-2 has none of torch's linear layers."""
    config = GPT2Config(vocab_size=320, n_embd=64, n_layer=1, n_head=4, n_positions=64)
    source = save(config, tmp_path / "source")
    with pytest.raises(UnsupportedArchitecture, match=r"GPT2LMHeadModel.* no linear layer"):
        build_to(str(source), "int8", None, tmp_path / "out", ignore)


def test_unknown_model_type_is_refused(tmp_path: Path) -> None:
    """A config that transformers cannot build is refused in one line."""
    source = save(OTHERS["phi"], tmp_path / "source")
    config = (source / "config.json").read_text().replace('"phi"', '"never-heard-of"')
    (source / "config.json").write_text(config)
    with pytest.raises(UnsupportedArchitecture, match="transformers builds no") as caught:
        build_to(str(source), "int8", None, tmp_path / "out", ignore)
    assert "\n" not in str(caught.value)


def test_misshapen_weight_is_refused(tmp_path: Path) -> None:
    """Config and weights of different models are told apart by shape."""
    source = save(OTHERS["phi"], tmp_path / "source")
    config = (source / "config.json").read_text()
    changed = config.replace('"intermediate_size": 128', '"intermediate_size": 192')
    (source / "config.json").write_text(changed)
    with pytest.raises(CorruptCheckpoint, match=r"has shape \[128, 64\].*asks for \[192, 64\]"):
        build_to(str(source), "int8", None, tmp_path / "out", ignore)
