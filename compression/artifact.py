"""The artifact's directory: a Hugging Face checkpoint in compressed-tensors format."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compression.facts import CheckpointFacts
from compression.manifest import FILE_NAME, Manifest
from compression.plan import Plan
from compression.recipe import Recipe
from compression.schemes import Int4, Int8, Unquantized

_COMPANIONS = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "LICENSE*",
)
"""Files of the checkpoint, beside config and weights, that an engine may need."""


def quantization_config(recipe: Recipe) -> dict[str, Any] | None:
    """Return the compressed-tensors entry of config.json for a recipe; None if no linear changes.

    int8 is written as W8A8 with dynamic per-token activations: the same codes and scales serve
    engines that quantize activations (vLLM) and engines that do not (the embedded one).
    """
    weights: dict[str, Any]
    activations: dict[str, Any] | None = None
    match recipe.weights:
        case Unquantized():
            return None
        case Int8():
            layout = "int-quantized"
            weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
            activations = {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            }
        case Int4(group_size=group, symmetric=symmetric):
            layout = "pack-quantized"
            weights = {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group"}
            weights["group_size"] = group
    weights["dynamic"] = False
    group_0 = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group_0},
    }


def companions(directory: Path) -> list[Path]:
    """Return the checkpoint's files, beside config and weights, that an artifact copies."""
    found = {path for pattern in _COMPANIONS for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


def write_companions(plan: Plan, directory: Path) -> None:
    """Write config.json and copy the tokenizer and its companions into ``directory``."""
    config = dict(plan.facts.config)
    entry = quantization_config(plan.recipe)
    if entry is not None:
        config["quantization_config"] = entry
    _write_json(directory / "config.json", config)
    for path in companions(plan.facts.directory):
        shutil.copyfile(path, directory / path.name)


def write_index(facts: CheckpointFacts, plan: Plan, directory: Path) -> None:
    """Write the shard index, if the checkpoint has more than one weight file."""
    if len(facts.files) == 1 and facts.files[0] == "model.safetensors":
        return
    weight_map = {
        stored.name: tensor.fact.file for tensor in plan.tensors for stored in tensor.stored
    }
    index = {"metadata": {"total_size": plan.bytes_stored}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write the record of what was done."""
    (directory / FILE_NAME).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _write_json(path: Path, body: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
