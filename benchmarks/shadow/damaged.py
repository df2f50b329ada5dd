"""Artifacts as a defective build would have left them: changed files under a manifest that fits."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from safetensors.torch import load_file, save_file
from torch import Tensor

from compression.artifact import write_manifest
from compression.digest import hash_file
from compression.manifest import read_manifest

_WEIGHTS = "model.safetensors"

Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Damage:
    """What went wrong in a build."""

    what: str
    to_tensors: Callable[[Tensors], None] | None = None
    """Changes tensors in place, by their names in the file."""
    to_config: Mapping[str, object] = field(default_factory=dict)
    """Keys of config.json and what they become."""


def scaled(tensors: Tensors, ending: str, factor: float) -> None:
    """Multiply the scales of all layers whose name has this ending."""
    for name in [each for each in tensors if each.endswith(f"{ending}.weight_scale")]:
        tensors[name] = tensors[name] * factor


def without_heads(tensors: Tensors, heads: tuple[int, ...], width: int = 64) -> None:
    """Cut these query heads off in every layer."""
    for name in [each for each in tensors if each.endswith("o_proj.weight")]:
        kept = tensors[name].clone()
        for head in heads:
            kept[:, head * width : (head + 1) * width] = 0
        tensors[name] = kept


DAMAGES: Mapping[str, Damage] = MappingProxyType(
    {
        "scale 2 %": Damage(
            "the scales of one linear layer are 2 % too large",
            lambda tensors: scaled(tensors, "layers.15.mlp.down_proj", 1.02),
        ),
        "scale 10 %": Damage(
            "the scales of one linear layer are 10 % too large",
            lambda tensors: scaled(tensors, "layers.15.mlp.down_proj", 1.1),
        ),
        "scales 10 %": Damage(
            "the scales of every layer's last linear layer are 10 % too large",
            lambda tensors: scaled(tensors, "mlp.down_proj", 1.1),
        ),
        "one head": Damage(
            "one of nine query heads is missing in every layer",
            lambda tensors: without_heads(tensors, (4,)),
        ),
        "three heads": Damage(
            "three of nine query heads are missing in every layer",
            lambda tensors: without_heads(tensors, (1, 4, 7)),
        ),
        "rope base": Damage(
            "the base of the rotation is 10,000 instead of 100,000",
            to_config={
                "rope_theta": 10_000.0,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        ),
    }
)


def write_damaged(sound: Path, damage: Damage, directory: Path) -> None:
    """Write a copy of an artifact with the damage, and a manifest that takes it for sound.

    Raises:
        FileNotFoundError: the source is no artifact.
    """
    shutil.copytree(sound, directory)
    if damage.to_tensors is not None:
        tensors = load_file(directory / _WEIGHTS)
        damage.to_tensors(tensors)
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()},
            directory / _WEIGHTS,
            metadata={"format": "pt"},
        )
    if damage.to_config:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | dict(damage.to_config)))
    manifest = read_manifest(directory)
    if manifest is None:
        raise FileNotFoundError(f"{directory} is no artifact")
    files = {name: hash_file(directory / name) for name in manifest.files}
    write_manifest(manifest.model_copy(update={"files": files}), directory)
