"""The artifact's directory: a Hugging Face checkpoint that engines load as it is."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compression.errors import BuildError
from compression.manifest import FILE_NAME, Manifest
from compression.plan import Plan
from compression.quantization_config import quantization_config

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


def companions(directory: Path) -> list[Path]:
    """Return the checkpoint's files, beside config and weights, that an artifact copies."""
    found = {path for pattern in _COMPANIONS for path in directory.glob(pattern) if path.is_file()}
    return sorted(found)


def write_companions(plan: Plan, directory: Path) -> list[Path]:
    """Write config.json, the shard index and the tokenizer into ``directory``; return them."""
    config = dict(plan.facts.config)
    entry = quantization_config(plan)
    if entry is not None:
        config["quantization_config"] = entry
    written = [write_json(directory / "config.json", config)]
    for path in companions(plan.facts.directory):
        shutil.copyfile(path, directory / path.name)
        written.append(directory / path.name)
    if plan.facts.files != ("model.safetensors",):
        weight_map = {
            stored.name: tensor.fact.file for tensor in plan.tensors for stored in tensor.stored
        }
        written.append(write_index(directory, weight_map, total_bytes=plan.bytes_stored))
    return written


def write_manifest(manifest: Manifest, directory: Path) -> None:
    """Write the record of what was done; one that is there is replaced at once.

    Raises:
        BuildError: it could not be read again, because a figure in it is infinite or no number.
    """
    body = manifest.model_dump_json(indent=1)
    try:
        is_same = Manifest.model_validate_json(body) == manifest
    except ValidationError:
        is_same = False
    if not is_same:
        raise BuildError(
            f"recipe {manifest.recipe.name!r} gives figures that are infinite or no numbers: "
            "choose a safer recipe or check the checkpoint"
        )
    temporary = directory / f".{FILE_NAME}"
    temporary.write_text(body, encoding="utf-8")
    temporary.replace(directory / FILE_NAME)


def write_index(directory: Path, weight_map: Mapping[str, str], *, total_bytes: int) -> Path:
    """Write which shard holds each tensor; return the file."""
    body = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
    return write_json(directory / "model.safetensors.index.json", body)


def write_json(path: Path, body: Mapping[str, Any]) -> Path:
    """Write a JSON file as checkpoints have them; return it."""
    path.write_text(json.dumps(dict(body), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
