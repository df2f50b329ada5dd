"""What passes between a peer's environment and the evaluator: f32 weights and their real size.

Imported in every peer's environment: nothing but torch and safetensors may be needed here.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"
CALIBRATION = "calibration.json"
_WEIGHTS = "weights.safetensors"
_SIZES = "sizes.json"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What one method's result takes, counted from the tensors that it would store."""

    name: str
    """The method with what tells its variants apart, e.g. ``HQQ g64``."""
    version: str
    """The library and its version."""
    settings: str
    linear_bytes: int
    """Codes, scales, zero points and indices of all linear layers in the decoder."""
    embedding_bytes: int
    """The token embedding, which the demo model's output head shares."""
    embedding: str
    """How the embedding is stored, e.g. ``bf16``."""


def linears(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and weight of every linear layer in the decoder of a one-file checkpoint."""
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        for name in sorted(file.keys()):
            if ".layers." in name and len(file.get_slice(name).get_shape()) == 2:
                yield name, file.get_tensor(name)


def embedding_bytes(checkpoint: Path) -> int:
    """Return the bytes of the token embedding as the checkpoint stores it."""
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        tensor: Tensor = file.get_tensor(EMBEDDING)
    return tensor.numel() * tensor.element_size()


def tensor_bytes(*tensors: Tensor) -> int:
    """Return the bytes of the tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def write(directory: Path, weights: Mapping[str, Tensor], sizes: Sizes) -> None:
    """Write a method's f32 weights by checkpoint name; sizes last, as the mark of a whole result.

    Raises:
        ValueError: a weight is not f32; rounding it again would be counted as the method's error.
    """
    for name, weight in weights.items():
        if str(weight.dtype) != "torch.float32":
            raise ValueError(f"{name!r} is {weight.dtype}: hand over float32")
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, directory / _WEIGHTS)
    (directory / _SIZES).write_text(json.dumps(asdict(sizes), indent=1) + "\n", encoding="utf-8")


def is_written(directory: Path) -> bool:
    """Return whether ``directory`` holds a whole result."""
    return (directory / _SIZES).is_file()


def read_sizes(directory: Path) -> Sizes:
    """Return the sizes of a result."""
    return Sizes(**json.loads((directory / _SIZES).read_text(encoding="utf-8")))


def read_weights(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and f32 weight of a result, one at a time."""
    with safe_open(directory / _WEIGHTS, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            yield name, file.get_tensor(name)


def read_calibration(work: Path) -> list[list[int]]:
    """Return the windows of token ids that every calibrated method reads."""
    windows: list[list[int]] = json.loads((work / CALIBRATION).read_text(encoding="utf-8"))
    return windows
