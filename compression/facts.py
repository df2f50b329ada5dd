"""What a checkpoint holds, read from its headers alone: no weight is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compression.architecture import Architecture, parse_architecture, read_config
from compression.errors import CorruptCheckpoint, SourceError

ITEMSIZE: Mapping[str, int] = MappingProxyType(
    {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U8": 1,
        "BOOL": 1,
    }
)
_FLOATS = frozenset({"F32", "F16", "BF16"})
_MAX_HEADER_BYTES = 100 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorFact:
    """One tensor of a checkpoint file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    num_bytes: int


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What can be known of a checkpoint without loading a weight."""

    directory: Path
    config: Mapping[str, Any]
    architecture: Architecture
    files: tuple[str, ...]
    tensors: Mapping[str, TensorFact]
    """The tensors that the architecture needs, in file order."""

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all needed weights as stored."""
        return sum(tensor.num_bytes for tensor in self.tensors.values())


def read_facts(directory: Path) -> CheckpointFacts:
    """Read and check the config and every safetensors header of a checkpoint.

    Raises:
        SourceError: no config.json or no safetensors file.
        UnsupportedArchitecture: not a family this project knows.
        CorruptCheckpoint: a file is truncated or unreadable, or a tensor is missing or misshapen.
    """
    config = read_config(directory)
    architecture = parse_architecture(config, where=str(directory))
    files = checkpoint_files(directory)
    found: dict[str, TensorFact] = {}
    for file in files:
        found |= read_header(directory / file)
    tensors = {}
    for name, shape in architecture.tensors().items():
        fact = found.get(name)
        if fact is None:
            raise CorruptCheckpoint(
                f"{str(directory)!r} lacks the tensor {name!r}: fetch the checkpoint again"
            )
        if fact.shape != shape:
            raise CorruptCheckpoint(
                f"{name!r} has shape {list(fact.shape)}, config.json asks for {list(shape)}: "
                "config and weights belong to different models"
            )
        if fact.dtype not in _FLOATS:
            raise SourceError(
                f"{name!r} has dtype {fact.dtype}: give a checkpoint in BF16, F16 or F32"
            )
        tensors[name] = fact
    ordered = {name: tensors[name] for name in found if name in tensors}
    return CheckpointFacts(
        directory=directory,
        config=MappingProxyType(config),
        architecture=architecture,
        files=files,
        tensors=MappingProxyType(ordered),
    )


def checkpoint_files(directory: Path) -> tuple[str, ...]:
    """Return the names of a checkpoint's weight files, in the order of its index.

    Raises:
        SourceError: there is no safetensors file.
        CorruptCheckpoint: the index is unreadable or names a file that is missing.
    """
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        if (directory / "model.safetensors").exists():
            return ("model.safetensors",)
        raise SourceError(
            f"{str(directory)!r} has no model.safetensors: convert the weights to safetensors"
        )
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = tuple(dict.fromkeys(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CorruptCheckpoint(f"{str(index)!r} is unreadable: fetch it again") from None
    for file in files:
        if Path(file).name != file or not (directory / file).exists():
            raise CorruptCheckpoint(
                f"{str(directory / file)!r} is missing: fetch the checkpoint again"
            )
    return files


def read_header(path: Path) -> dict[str, TensorFact]:
    """Return the tensors that one safetensors file declares.

    Raises:
        CorruptCheckpoint: the file is truncated, or its header contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise CorruptCheckpoint(
                    f"{str(path)!r} is truncated or no safetensors file: fetch it again"
                )
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _tensor_fact(name, entry, path.name) for name, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise CorruptCheckpoint(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise CorruptCheckpoint(f"{str(path)!r} has a damaged header: fetch it again") from None
    if 8 + length + end != size:
        raise CorruptCheckpoint(
            f"{str(path)!r} is {size} bytes long, its header promises {8 + length + end}: "
            "fetch it again"
        )
    return tensors


def _tensor_fact(name: str, entry: Mapping[str, Any], file: str) -> TensorFact:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    count = 1
    for size in shape:
        count *= size
    if end - begin != count * ITEMSIZE[entry["dtype"]]:
        raise ValueError(name)
    return TensorFact(
        name=name, dtype=entry["dtype"], shape=shape, file=file, num_bytes=end - begin
    )
