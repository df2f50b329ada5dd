"""Plans: per-module schemes, what is refused before a weight is read, and the memory bound."""

import json
from pathlib import Path
from typing import Any

import pytest

from compression.architecture import parse_architecture
from compression.errors import CompressionError, RecipeError
from compression.facts import read_facts
from compression.plan import StoredTensor, make_plan, module_of
from compression.presets import parse_recipe
from compression.quantization_config import quantization_config
from compression.recipe import Recipe
from compression.tensor_file import TensorFileWriter
from tests.checkpoints import make_tiny_checkpoint

FIRST = "model.layers.0"
LAST = "model.layers.1"
INT8 = {"scheme": "int8"}
INT4 = {"scheme": "int4"}


def recipe_of(**fields: Any) -> Recipe:
    """Return a recipe as a user would write it."""
    return parse_recipe(fields, where="test", default_name="mine")


def labels(directory: Path, recipe: Recipe) -> dict[str, str]:
    """Return the planned scheme of each linear module."""
    plan = make_plan(read_facts(directory), recipe)
    return {module_of(tensor.fact.name): tensor.scheme.label for tensor in plan.linears}


def test_rules_and_keep_decide_module_by_module(tiny_llama_dir: Path) -> None:
    """The first rule that names a module wins, `keep` beats rules, the rest gets `weights`."""
    recipe = recipe_of(
        weights=INT4,
        rules=[
            {"targets": [r"re:.*\.1\.mlp\."], "weights": INT8},
            {"targets": ["re:.*mlp"], "weights": {"scheme": "int4", "group_size": 64}},
        ],
        keep=[f"{FIRST}.self_attn.o_proj", f"{LAST}.mlp.down_proj"],
    )
    planned = labels(tiny_llama_dir, recipe)
    assert planned[f"{FIRST}.self_attn.q_proj"] == "int4-g32-asym"
    assert planned[f"{FIRST}.self_attn.o_proj"] == "none"
    assert planned[f"{FIRST}.mlp.up_proj"] == "int4-g64-asym"
    assert planned[f"{LAST}.mlp.up_proj"] == "int8-rows"
    assert planned[f"{LAST}.mlp.down_proj"] == "none"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"weights": INT4, "keep": ["model.layers.7.mlp.up_proj"]},
            r"'model\.layers\.7\.mlp\.up_proj' names no linear module .* named like",
        ),
        ({"weights": INT4, "keep": ["lm_head"]}, r"'lm_head' names no linear module"),
        (
            {"weights": INT4, "keep": [f"{FIRST}.self_attn.k_proj"]},
            r"q_proj' the scheme int4-g32-asym and .*k_proj' none: engines fuse them",
        ),
        (
            {"weights": INT4, "rules": [{"targets": [r"re:.*up_proj"], "weights": INT8}]},
            r"gate_proj' the scheme int4-g32-asym and .*up_proj' int8-rows",
        ),
        (
            {"weights": {"scheme": "int4", "group_size": 128}},
            r"proj\.weight' has 64 columns, not a multiple of group_size 128: .*smaller",
        ),
        (
            {"weights": INT8, "keep": ["Linear"], "activations": "int8"},
            r"activations 'int8', but keep and rules leave no module",
        ),
        (
            {"weights": INT4, "embeddings": {"scheme": "int8", "method": "best"}},
            r"gives the embeddings the method 'best', .*use 'rtn', 'mse', 'gptq' or 'auto'",
        ),
    ],
)
def test_impossible_combinations_are_one_line(
    tiny_llama_dir: Path, fields: dict[str, Any], expected: str
) -> None:
    """What cannot be carried out on this checkpoint is refused by name, from headers alone."""
    with pytest.raises(RecipeError, match=expected) as caught:
        make_plan(read_facts(tiny_llama_dir), recipe_of(**fields))
    assert "\n" not in str(caught.value)


def test_nf4_needs_whole_blocks(tmp_path: Path) -> None:
    """A width that 64 does not divide is told the way out, and the way out works."""
    source = make_tiny_checkpoint(tmp_path / "source", intermediate_size=96)
    with pytest.raises(RecipeError, match=r"down_proj\.weight' has 96 columns.*'keep'"):
        make_plan(read_facts(source), recipe_of(weights={"scheme": "nf4"}))
    kept = recipe_of(weights={"scheme": "nf4"}, keep=[r"re:.*down_proj"])
    assert labels(source, kept)[f"{FIRST}.mlp.down_proj"] == "none"


def test_quantized_source_is_refused(tmp_path: Path) -> None:
    """A checkpoint that is quantized already is told so by its config."""
    source = make_tiny_checkpoint(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CompressionError, match=r"already quantized.*full-precision"):
        read_facts(source)


def test_one_scheme_targets_the_class(tiny_llama_dir: Path) -> None:
    """One group for all Linear; what is kept and the head are ignored by path."""
    recipe = recipe_of(weights=INT8, keep=[f"{LAST}.mlp.down_proj"])
    entry = quantization_config(make_plan(read_facts(tiny_llama_dir), recipe))
    assert entry is not None
    assert entry["format"] == "int-quantized"
    assert entry["ignore"] == ["lm_head", f"{LAST}.mlp.down_proj"]
    (group,) = entry["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["input_activations"]["strategy"] == "token"


def test_mixed_schemes_are_told_apart_by_path(tiny_llama_dir: Path) -> None:
    """Every module is in exactly one group, by its path: `Linear` would shadow fused layers."""
    rules = [{"targets": [r"re:.*\.1\.self_attn"], "weights": INT8}]
    recipe = recipe_of(weights=INT4, rules=rules)
    plan = make_plan(read_facts(tiny_llama_dir), recipe)
    entry = quantization_config(plan)
    assert entry is not None
    assert entry["format"] == "mixed-precision"
    groups = entry["config_groups"].values()
    assert {group["format"] for group in groups} == {"int-quantized", "pack-quantized"}
    targets = [target for group in groups for target in group["targets"]]
    assert sorted(targets) == sorted(plan.facts.linears)


def test_method_does_not_split_a_group(tiny_llama_dir: Path) -> None:
    """Readers know formats, not how the codes were chosen."""
    rules = [{"targets": [r"re:.*mlp"], "weights": {"scheme": "int4", "method": "rtn"}}]
    plan = make_plan(read_facts(tiny_llama_dir), recipe_of(weights=INT4, rules=rules))
    entry = quantization_config(plan)
    assert entry is not None
    assert len(entry["config_groups"]) == 1


def empty_checkpoint(directory: Path, source: Path, **sizes: int) -> Path:
    """Write a checkpoint of any size that takes no room: headers, and files with holes."""
    directory.mkdir()
    config = json.loads((source / "config.json").read_text()) | sizes
    (directory / "config.json").write_text(json.dumps(config))
    shapes = parse_architecture(config, where="test").tensors()
    declared = [StoredTensor(name, "BF16", shape) for name, shape in shapes.items()]
    with TensorFileWriter(directory / "model.safetensors", declared):
        return directory


def test_declared_memory_grows_with_the_largest_weight_not_with_the_model(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    """More layers and words need no more; a wider MLP does; a calibration text does."""

    def declared(name: str, method: str, **sizes: int) -> int:
        sizes = {"hidden_size": 2048, "intermediate_size": 8192, **sizes}
        facts = read_facts(empty_checkpoint(tmp_path / name, tiny_llama_dir, **sizes))
        recipe = recipe_of(weights={"scheme": "int4", "method": method})
        return make_plan(facts, recipe).peak_bytes

    plain = declared("plain", "mse")
    assert declared("deep", "mse", num_hidden_layers=60, vocab_size=128_256) == plain
    assert declared("wide", "mse", intermediate_size=16384) > plain
    assert declared("calibrated", "gptq") > plain
    assert plain < 1e9
