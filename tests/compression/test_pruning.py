"""Pruned checkpoints: they compute what the masked model computes, and any engine loads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig

from compression.events import ignore
from compression.facts import read_facts
from compression.first_tokens import first_tokens
from compression.halves import AttentionHalf
from compression.layerwise import LayerStream
from compression.prepare import build_to
from compression.pruning.forecast import pruned_facts
from compression.pruning.leave_one_out import leave_one_out
from compression.pruning.passage import Passage
from compression.pruning.prune import prune_on
from compression.pruning.record import PruneRecord
from compression.pruning.selection import channels
from compression.pruning.shape import pruned_shape
from compression.recipe import Prune
from gateway.engine.runner import load_runner
from tests.checkpoints import CONFIGS, make_tiny_checkpoint, randomize

ALL = Prune(query_heads=1, kv_groups=1, neurons=0.25, compensate=False)
HEADS = Prune(query_heads=1)


def windows(count: int = 6, tokens: int = 48, *, seed: int = 1) -> Tensor:
    """Return random token ids of the tiny checkpoints' vocabulary."""
    return torch.randint(3, 320, (count, tokens), generator=torch.Generator().manual_seed(seed))


def checkpoint(directory: Path, family: str, **sizes: Any) -> Path:
    """Return a checkpoint in float32: 3 key-value heads with 3 query heads each, 64 neurons."""
    given = {
        "hidden_size": 72,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "dtype": torch.float32,
        **sizes,
    }
    return make_tiny_checkpoint(directory, family=family, **given)


def biased_llama(directory: Path) -> Path:
    """Return a Llama whose linear layers all have biases."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        vocab_size=320,
        attention_bias=True,
        mlp_bias=True,
    )
    model = AutoModelForCausalLM.from_config(config)
    randomize(model, seed=0)
    model.save_pretrained(directory)
    return directory


def pruned(
    source: Path, directory: Path, recipe: Prune, text: Tensor | None = None
) -> tuple[Path, PruneRecord]:
    """Prune ``source`` into ``directory``."""
    directory.mkdir()
    return directory, prune_on(read_facts(source), recipe, text, directory, ignore)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    """Return the model's logits in float32."""
    scores: Tensor = model(ids).logits
    return scores.float()


def load(directory: Path) -> Any:
    """Load a plain checkpoint as transformers does, in float32; no key may be left over."""
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.eval()


@torch.no_grad()
def masked(source: Path, record: PruneRecord, neurons: list[Tensor]) -> Any:
    """Return the source model whose removed heads and neurons give zeros."""
    model = load(source)
    head_dim = read_facts(source).architecture.head_dim
    for layer, cut, kept in zip(model.model.layers, record.layers, neurons, strict=True):
        layer.self_attn.o_proj.weight[:, channels(cut.query_heads, head_dim)] = 0
        mask = torch.zeros(layer.mlp.down_proj.in_features)
        mask[kept] = 1
        layer.mlp.down_proj.weight *= mask
    return model


def kept_neurons(source: Path, result: Path) -> list[Tensor]:
    """Find each kept neuron of every layer by its rows of gate_proj."""
    found = []
    layers = read_facts(source).architecture.num_layers
    for index in range(layers):
        name = f"model.layers.{index}.mlp.gate_proj.weight"
        before, after = (weight(each, name) for each in (source, result))
        found.append(torch.cdist(after, before).argmin(1))
    return found


def weight(directory: Path, name: str) -> Tensor:
    """Return one tensor of a single-file checkpoint."""
    with safe_open(directory / "model.safetensors", framework="pt") as stored:
        tensor: Tensor = stored.get_tensor(name)
    return tensor


@pytest.mark.parametrize("score", ["magnitude", "fluctuation", "leave-one-out"])
@pytest.mark.parametrize("family", CONFIGS)
def test_pruned_computes_what_masked_computes(family: str, score: Any, tmp_path: Path) -> None:
    """Without compensation the smaller model is the source with zeros; only float32 rounds."""
    source = checkpoint(tmp_path / "source", family)
    recipe = ALL.model_copy(update={"score": score})
    result, record = pruned(source, tmp_path / "result", recipe, windows())
    exact = logits(masked(source, record, kept_neurons(source, result)), windows(seed=2))
    given = logits(load(result), windows(seed=2))
    assert float((given - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    assert float((logits(load(source), windows(seed=2)) - given).abs().max()) > 0.1
    assert record.bytes_after < record.bytes_before
    assert record.kld is not None
    assert record.kld > 0


@pytest.mark.parametrize(
    ("family", "recipe", "expected"),
    [
        ("llama", HEADS, {"architectures": ["LlamaForCausalLM"], "attention_bias": False}),
        ("llama", Prune(neurons=0.5), {"architectures": ["LlamaForCausalLM"], "mlp_bias": False}),
        (
            "llama",
            Prune(query_heads=2, kv_groups=1, compensate=False),
            {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "head_dim": 8},
        ),
        ("mistral", HEADS, {"architectures": ["MistralForCausalLM"], "sliding_window": 4096}),
        ("qwen2", HEADS, {"architectures": ["LlamaForCausalLM"], "attention_bias": True}),
        ("qwen2", Prune(neurons=0.5), {"architectures": ["Qwen2ForCausalLM"]}),
        ("qwen3", HEADS, {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False}),
    ],
)
def test_config_of_the_result(
    family: str, recipe: Prune, expected: dict[str, Any], tmp_path: Path
) -> None:
    """Each family is written in a form that transformers and this project's facts accept."""
    source = checkpoint(tmp_path / "source", family)
    result, record = pruned(source, tmp_path / "result", recipe, windows())
    config = json.loads((result / "config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in expected} == expected
    architecture = read_facts(result).architecture
    assert (architecture.num_heads, architecture.num_kv_heads, architecture.head_dim) == (
        record.heads,
        record.kv_heads,
        8,
    )
    assert bool(torch.isfinite(logits(load(result), windows())).all())
    assert (result / "tokenizer.json").is_file()


def test_llama_with_an_odd_count_becomes_mistral(tmp_path: Path) -> None:
    """7 heads do not divide 64: the Llama is written as a Mistral, which computes the same."""
    source = checkpoint(
        tmp_path / "source", "llama", hidden_size=64, num_attention_heads=8, num_key_value_heads=1
    )
    recipe = HEADS.model_copy(update={"compensate": False})
    result, record = pruned(source, tmp_path / "result", recipe, windows())
    assert record.architecture == "MistralForCausalLM"
    everything = [torch.arange(128)] * 2
    exact = logits(masked(source, record, everything), windows(seed=2))
    given = logits(load(result), windows(seed=2))
    assert float((given - exact).abs().max()) < 1e-5 * float(exact.abs().max())


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("recipe", [HEADS, Prune(kv_groups=1), Prune(neurons=0.25)])
def test_compensation_lowers_the_error(family: str, recipe: Prune, tmp_path: Path) -> None:
    """On the text it was fitted on, the refitted model is nearer to the source."""
    source = checkpoint(tmp_path / "source", family)
    text = windows(12, 64)
    plain, _ = pruned(
        source, tmp_path / "plain", recipe.model_copy(update={"compensate": False}), text
    )
    fitted, record = pruned(source, tmp_path / "fitted", recipe, text)
    exact = logits(load(source), text)
    errors = [float((logits(load(each), text) - exact).square().mean()) for each in (plain, fitted)]
    assert errors[1] < errors[0]
    for layer in record.layers:
        error = layer.attention_error or layer.mlp_error
        assert error is not None
        assert error.compensated < error.removed
    has_bias = family == "qwen2" and not recipe.neurons
    assert record.compensation == ("weights and biases" if has_bias else "weights")


def test_biases_are_cut_and_refitted_where_there_are_some(tmp_path: Path) -> None:
    """A Llama with all biases: the smaller one has them, computes the same, and can refit them."""
    source, text = biased_llama(tmp_path / "source"), windows(12, 64)
    recipe = Prune(query_heads=1, neurons=0.25, compensate=False)
    result, record = pruned(source, tmp_path / "result", recipe, text)
    exact = logits(masked(source, record, kept_neurons(source, result)), text)
    given = logits(load(result), text)
    assert float((given - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    recipe = recipe.model_copy(update={"compensate": True})
    fitted, record = pruned(source, tmp_path / "fitted", recipe, text)
    assert record.compensation == "weights and biases"
    for name in ("self_attn.o_proj.bias", "mlp.down_proj.bias"):
        before, after = (weight(each, f"model.layers.0.{name}") for each in (source, fitted))
        assert not torch.equal(before, after)
    whole = logits(load(source), text)
    errors = [
        float((logits(load(each), text) - whole).square().mean()) for each in (result, fitted)
    ]
    assert errors[1] < errors[0]


def test_equal_counts_in_every_group_and_layer(tmp_path: Path) -> None:
    """Each group of each layer loses as many heads, whichever they are."""
    source = checkpoint(tmp_path / "source", "llama", num_hidden_layers=4)
    _, record = pruned(source, tmp_path / "result", HEADS, windows())
    for layer in record.layers:
        assert sorted(head // 3 for head in layer.query_heads) == [0, 1, 2]
    assert len({layer.query_heads for layer in record.layers}) > 1


def test_leave_one_out_is_the_divergence_without_the_head(tmp_path: Path) -> None:
    """A head's score is what a model with zeros in its place diverges by."""
    source = checkpoint(tmp_path / "source", "llama")
    architecture = read_facts(source).architecture
    text = windows(8, 32)
    scores = leave_one_out(source, architecture, HEADS, text, ignore)
    model = load(source)
    exact = logits(model, text).log_softmax(-1)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, channels((4,), 8)] = 0
    changed = logits(model, text).log_softmax(-1)
    kld = float((exact.exp() * (exact - changed)).sum(-1).mean())
    assert float(scores.heads[1, 4]) == pytest.approx(kld, rel=1e-3)
    assert not scores.groups.any()


@pytest.mark.parametrize("score", ["magnitude", "fluctuation", "leave-one-out"])
def test_heads_that_do_nothing_go_first(tmp_path: Path, score: Any) -> None:
    """Every score finds the one head of each group whose output is not used."""
    source = checkpoint(tmp_path / "source", "llama")
    dead = (1, 3, 8)
    tensors = load_file(source / "model.safetensors")
    for layer in range(2):
        name = f"model.layers.{layer}.self_attn"
        columns = channels(dead, 8)
        tensors[f"{name}.o_proj.weight"][:, columns] = 0
        tensors[f"{name}.q_proj.weight"][columns] *= 0.1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    recipe = Prune(query_heads=1, score=score, compensate=False)
    _, record = pruned(source, tmp_path / "out", recipe, windows())
    assert [each.query_heads for each in record.layers] == [dead, dead]
    assert record.kld is None or record.kld < 1e-6


def test_passage_reads_tokens_that_stand_alone_too(tmp_path: Path) -> None:
    """What a half is observed on are the windows and, each by itself, tokens of them."""
    facts = read_facts(checkpoint(tmp_path / "source", "llama"))
    text = windows(2, 16)
    seen: list[Tensor] = []
    with LayerStream(facts) as stream:
        half = AttentionHalf(stream.layer(0))
        Passage(stream, text).observe(half, seen.append)
        alone: list[Tensor] = []
        handle = half.projection.register_forward_pre_hook(
            lambda module, inputs: alone.append(inputs[0].flatten(0, -2))
        )
        list(stream.run(half, stream.embed(text.view(-1, 1))))
        handle.remove()
    found = torch.cat(seen)
    assert found.shape[0] == 2 * text.numel()
    torch.testing.assert_close(found[text.numel() :], torch.cat(alone))


def test_first_tokens_come_from_all_of_the_text() -> None:
    """Some thousand tokens at even distances, each a text of its own."""
    ids = torch.arange(16384).view(32, 512)
    starts = first_tokens(ids)
    assert starts.shape == (2048, 1)
    assert starts.flatten().tolist() == list(range(0, 16384, 8))
    assert first_tokens(ids[:1]).flatten().tolist() == list(range(512))


def test_sharded_source_gives_a_sharded_result(tmp_path: Path) -> None:
    """The index names every tensor, new biases included."""
    source = checkpoint(tmp_path / "source", "llama", max_shard_size="100KB")
    result, record = pruned(source, tmp_path / "result", HEADS, windows())
    index = json.loads((result / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert set(index["weight_map"]) == set(read_facts(result).architecture.tensors())
    assert index["metadata"]["total_size"] == record.bytes_after
    assert bool(torch.isfinite(logits(load(result), windows())).all())


def test_forecast_is_what_is_written(tmp_path: Path) -> None:
    """The facts known beforehand are those of the files, so refusals come before the work."""
    for family in CONFIGS:
        source = read_facts(checkpoint(tmp_path / family, family))
        forecast = pruned_facts(source, pruned_shape(HEADS, source.architecture))
        written = read_facts(pruned(source.directory, tmp_path / f"{family}-pruned", HEADS)[0])
        assert forecast.architecture == written.architecture
        assert forecast.num_bytes == written.num_bytes
        assert forecast.tensors.keys() == written.tensors.keys()


# transformers warns of what is asked for here: another way of loading than the artifact's default.
@pytest.mark.filterwarnings("ignore")
def test_pruned_and_quantized_loads_everywhere(tmp_path: Path) -> None:
    """A recipe with heads and int4 gives one artifact for transformers and the embedded engine."""
    source = make_tiny_checkpoint(tmp_path / "source")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "weights: {scheme: int4, group_size: 32, method: mse}\n"
        "prune: {query_heads: 1, neurons: 0.25}\n"
        "calibration: {tokens: 512}\n",
        encoding="utf-8",
    )
    manifest = build_to(str(source), str(recipe), None, tmp_path / "out", ignore).manifest
    assert manifest is not None
    assert manifest.prune is not None
    assert (manifest.prune.heads, manifest.prune.neurons) == (2, 96)
    dense = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, quantization_config=dense
    )
    assert model.config.num_attention_heads == 2
    ids = windows(1, 20)
    exact = logits(model, ids)[0]
    served = load_runner(tmp_path / "out", threads=1, max_model_len=64).score(ids[0].tolist())
    assert float((served - exact).norm() / exact.norm()) < 0.03
