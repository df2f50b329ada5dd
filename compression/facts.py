"""What a checkpoint holds, read from its headers alone: no weight is loaded."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from compression.architecture import (
    Architecture,
    parse_architecture,
    read_config,
    require_unquantized,
)
from compression.errors import CorruptCheckpoint, SourceError, UnsupportedArchitecture

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
        "U64": 8,
        "U32": 4,
        "U16": 2,
        "U8": 1,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
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
    offset: int
    """Where the first byte lies in the file."""
    is_transposed: bool = False
    """Whether the file holds a matrix as its transpose, ``[columns, rows]``."""


@dataclass(frozen=True, slots=True)
class Stack:
    """A tensor of the files that holds one matrix of every expert."""

    modules: tuple[str, ...]
    """The path that each expert's matrix gets, in the order of the tensor."""
    shape: tuple[int, ...]
    """[rows, columns] of each."""
    is_transposed: bool
    """Whether each is held as its transpose."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The linear layers of a model whose family this project does not know by heart."""

    name: str
    linears: Mapping[str, tuple[int, ...]]
    """Path in the files → [rows, columns]; each expert's matrices, no router and no output head."""
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    """Name of a tensor in the files → how it is cut into experts."""
    routers: frozenset[str] = frozenset()
    """Paths in the files of the modules that choose experts."""


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What can be known of a checkpoint without loading a weight."""

    directory: Path
    config: Mapping[str, Any]
    name: str
    """The architecture's class, as config.json has it."""
    known: Architecture | None
    """None where only the linear layers are known (see :mod:`compression.outline`)."""
    linears: tuple[str, ...]
    """Paths of the linear modules inside the decoder whose weights the files hold."""
    files: tuple[str, ...]
    tensors: Mapping[str, TensorFact]
    """The tensors to keep, in file order: all that the architecture needs.

    Experts that the files hold in one tensor are here one by one."""
    routers: frozenset[str] = frozenset()
    """Paths of modules that choose experts; they stay as they are."""

    @property
    def architecture(self) -> Architecture:
        """Return the numbers of a known family.

        Raises:
            UnsupportedArchitecture: it is not known.
        """
        if self.known is None:
            raise UnsupportedArchitecture(
                f"{str(self.directory)!r}: of {self.name!r} only the linear layers are known"
            )
        return self.known

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
    found = read_headers(directory, files)
    wanted = architecture.tensors()
    for name, shape in wanted.items():
        if name not in found:
            raise CorruptCheckpoint(
                f"{str(directory)!r} lacks the tensor {name!r}: fetch the checkpoint again"
            )
        _require_float(found[name], shape)
    return CheckpointFacts(
        directory=directory,
        config=MappingProxyType(config),
        name=architecture.name,
        known=architecture,
        linears=tuple(
            module
            for layer in range(architecture.num_layers)
            for module, _ in architecture.linears(layer)
        ),
        files=files,
        tensors=MappingProxyType({name: found[name] for name in found if name in wanted}),
    )


def read_outlined_facts(directory: Path, outline: Outline) -> CheckpointFacts:
    """Read the same of a family that is known by its outline only; every tensor is kept.

    Raises:
        SourceError: no config.json or no safetensors file, or it is quantized already.
        UnsupportedArchitecture: the files hold none of the outlined layers under their names.
        CorruptCheckpoint: a file is truncated or unreadable, or a tensor is misshapen.
    """
    config = read_config(directory)
    require_unquantized(config, where=str(directory))
    files = checkpoint_files(directory)
    found = {
        part.name: part
        for fact in read_headers(directory, files).values()
        for part in _parts(fact, outline.stacks.get(fact.name))
    }
    linears = tuple(module for module in outline.linears if f"{module}.weight" in found)
    if not linears:
        raise UnsupportedArchitecture(
            f"{str(directory)!r}: the weights hold no linear layer of {outline.name!r} under the "
            "name that transformers gives it: save the model again with transformers"
        )
    for module in linears:
        _require_float(found[f"{module}.weight"], outline.linears[module])
    return CheckpointFacts(
        directory=directory,
        config=MappingProxyType(config),
        name=outline.name,
        known=None,
        linears=linears,
        files=files,
        tensors=MappingProxyType(found),
        routers=outline.routers,
    )


def _parts(fact: TensorFact, stack: Stack | None) -> Iterator[TensorFact]:
    """Yield a tensor, or the matrix of each expert that it holds."""
    if stack is None:
        yield fact
        return
    inner = stack.shape[::-1] if stack.is_transposed else stack.shape
    _require_float(fact, (len(stack.modules), *inner))
    size = fact.num_bytes // len(stack.modules)
    for index, module in enumerate(stack.modules):
        yield replace(
            fact,
            name=f"{module}.weight",
            shape=stack.shape,
            num_bytes=size,
            offset=fact.offset + index * size,
            is_transposed=stack.is_transposed,
        )


def read_headers(directory: Path, files: tuple[str, ...]) -> dict[str, TensorFact]:
    """Return the tensors that all files declare, in file order.

    Raises:
        CorruptCheckpoint: a file is truncated, or its header contradicts itself.
    """
    found: dict[str, TensorFact] = {}
    for file in files:
        found |= read_header(directory / file)
    return found


def _require_float(fact: TensorFact, shape: tuple[int, ...]) -> None:
    if fact.shape != shape:
        raise CorruptCheckpoint(
            f"{fact.name!r} has shape {list(fact.shape)}, config.json asks for {list(shape)}: "
            "config and weights belong to different models"
        )
    if fact.dtype not in _FLOATS:
        raise SourceError(
            f"{fact.name!r} has dtype {fact.dtype}: give a checkpoint in BF16, F16 or F32"
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
        tensors = {
            name: _tensor_fact(name, entry, path.name, 8 + length) for name, entry in header.items()
        }
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


def _tensor_fact(name: str, entry: Mapping[str, Any], file: str, payload: int) -> TensorFact:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    count = 1
    for size in shape:
        count *= size
    if end - begin != count * ITEMSIZE[entry["dtype"]]:
        raise ValueError(name)
    return TensorFact(
        name=name,
        dtype=entry["dtype"],
        shape=shape,
        file=file,
        num_bytes=end - begin,
        offset=payload + begin,
    )
