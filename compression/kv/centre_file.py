"""The centres of keys, as an artifact holds them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from compression.errors import ArtifactError
from compression.kv.shape import KvShape

CENTRES_FILE = "kv_centres.tensors"
"""A safetensors file by another ending: vLLM reads every ``*.safetensors`` as weights."""


def write_centres(directory: Path, centres: Sequence[Tensor]) -> Path:
    """Write one ``[kv_heads, head_dim]`` per layer into an artifact, f32; return the file."""
    tensors = {
        _name(layer): centre.to(torch.float32).contiguous() for layer, centre in enumerate(centres)
    }
    path = directory / CENTRES_FILE
    save_file(tensors, path)
    return path


def read_centres(directory: Path, architecture: KvShape) -> tuple[Tensor, ...] | None:
    """Return one ``[kv_heads, head_dim]`` f32 per layer, or None where the artifact has none.

    Raises:
        ArtifactError: the file is unreadable or belongs to another model.
    """
    path = directory / CENTRES_FILE
    if not path.exists():
        return None
    try:
        tensors: Mapping[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{str(path)!r} is unreadable ({error}): build the artifact again"
        ) from None
    shape = (architecture.num_kv_heads, architecture.head_dim)
    names = [_name(layer) for layer in range(architecture.num_layers)]
    for name in names:
        found = tensors.get(name)
        if found is None or tuple(found.shape) != shape or not bool(found.isfinite().all()):
            raise ArtifactError(
                f"{str(path)!r} has no finite {name!r} of shape {list(shape)}: "
                "build the artifact again"
            )
    return tuple(tensors[name] for name in names)


def _name(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.k_centre"
