"""The method ``auto``: GPTQ where a checkpoint can be calibrated, plain rounding elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPTNeoXConfig

from compression import automatic
from compression.checked_plan import plan_once_pruned
from compression.events import ignore
from compression.facts import read_facts
from compression.manifest import Manifest
from compression.plan import make_plan
from compression.prepare import build_to
from compression.presets import PRESETS, parse_recipe
from compression.recipe import Recipe
from tests.checkpoints import make_tiny_checkpoint
from tests.compression.test_other_families import save


def recipe_of(**fields: object) -> Recipe:
    """Return a recipe from plain data."""
    return parse_recipe(fields, where="test", default_name="mine")


def built(source: Path, recipe: str, out: Path) -> Manifest:
    """Return the manifest of a build."""
    manifest = build_to(str(source), recipe, None, out, ignore).manifest
    assert manifest is not None
    return manifest


def ways(manifest: Manifest) -> set[tuple[str | None, str]]:
    """Return the methods of the linear weights with the reasons."""
    linears = [each for each in manifest.tensors if ".layers." in each.name]
    return {(each.method, each.reason) for each in linears if each.method is not None}


def test_small_model_is_calibrated(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """Preset int8 rounds by GPTQ, says so, and errs less on the layers' outputs than rounding."""
    manifest = built(tiny_llama_dir, "int8", tmp_path / "out")
    assert ways(manifest) == {("gptq", "")}
    assert manifest.recipe == PRESETS["int8"]
    assert manifest.recipe_digest == PRESETS["int8"].digest
    assert manifest.calibration_digest is not None
    assert ways(built(tiny_llama_dir, "int8-fast", tmp_path / "fast")) == {("rtn", "")}


def test_model_without_tokenizer_is_rounded_plainly(tmp_path: Path) -> None:
    """No text can be read for it; the manifest has the reason, and no calibration."""
    source = make_tiny_checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    manifest = built(source, "int8", tmp_path / "out")
    assert ways(manifest) == {
        ("rtn", "rounded plainly: without tokenizer.json no text can be read")
    }
    assert manifest.calibration_digest is None
    assert manifest.recipe_digest == PRESETS["int8"].digest


def test_large_model_is_rounded_plainly(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit nothing is calibrated, so the build needs no more memory than int8-fast."""
    facts = read_facts(tiny_llama_dir)
    count = sum(each.num_weights for each in make_plan(facts, PRESETS["int8"]).linears)
    monkeypatch.setattr(automatic, "MOST_WEIGHTS", count)
    assert make_plan(facts, PRESETS["int8"]).carried.weights == PRESETS["int8-gptq"].weights
    monkeypatch.setattr(automatic, "MOST_WEIGHTS", count - 1)
    plan, fast = make_plan(facts, PRESETS["int8"]), make_plan(facts, PRESETS["int8-fast"])
    assert plan.carried.weights == PRESETS["int8-fast"].weights
    assert not plan.carried.needs_calibration
    assert plan.peak_bytes == fast.peak_bytes
    assert {each.reason for each in plan.linears} == {
        "rounded plainly: 0 million weights would take long to calibrate"
    }


def test_family_known_by_outline_is_rounded_plainly(tmp_path: Path) -> None:
    """Any architecture that can be compressed takes the preset."""
    config = GPTNeoXConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    manifest = built(save(config, tmp_path / "source"), "int8", tmp_path / "out")
    reason = "rounded plainly: GPTNeoXForCausalLM is known by its linear layers only"
    assert ways(manifest) == {("rtn", reason)}


def test_what_pruning_leaves_keeps_the_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is small enough only once it is pruned is not calibrated: no text was read."""
    source = make_tiny_checkpoint(tmp_path / "source", intermediate_size=512)
    recipe = recipe_of(
        weights={"scheme": "int8", "method": "auto"},
        prune={"neurons": 0.5, "score": "magnitude", "compensate": False},
    )
    facts = read_facts(source)
    count = sum(each.num_weights for each in make_plan(facts, recipe).linears)
    monkeypatch.setattr(automatic, "MOST_WEIGHTS", count - 1)
    left = plan_once_pruned(make_plan(facts, recipe))
    assert sum(each.num_weights for each in left.linears) < count
    assert left.recipe == recipe
    assert {getattr(each.scheme, "method", "") for each in left.linears} == {"rtn"}
    assert {each.reason for each in left.linears} == {
        "rounded plainly: 0 million weights would take long to calibrate"
    }


def test_rules_may_leave_the_method_open(tiny_llama_dir: Path) -> None:
    """What a rule says of a method stays; what is kept has no reason."""
    recipe = recipe_of(
        weights={"scheme": "int8", "method": "mse"},
        rules=[{"targets": ["re:.*down_proj"], "weights": {"scheme": "int8", "method": "auto"}}],
        keep=["model.layers.0.mlp.down_proj"],
    )
    facts = replace(read_facts(tiny_llama_dir), directory=tiny_llama_dir / "none")
    found = {
        each.fact.name: (getattr(each.scheme, "method", None), each.reason)
        for each in make_plan(facts, recipe).linears
    }
    assert found["model.layers.0.mlp.up_proj.weight"] == ("mse", "")
    assert found["model.layers.0.mlp.down_proj.weight"] == (None, "kept by the recipe")
    method, reason = found["model.layers.1.mlp.down_proj.weight"]
    assert (method, "tokenizer.json" in reason) == ("rtn", True)
