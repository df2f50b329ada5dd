"""Safetensors files written tensor by tensor: the header first, then each tensor at its place.

The format is described in the safetensors README. The library itself writes only whole
dictionaries, which would hold a full shard in memory.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from torch import Tensor

from compression.plan import StoredTensor
from compression.tensor_source import DTYPES

_NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {dtype: name for name, dtype in DTYPES.items()}
)
_BLOCK_BYTES = 4 * 1024 * 1024


class TensorFileWriter:
    """Writes one file whose tensors are declared beforehand and given in any order, each once."""

    def __init__(self, path: Path, declared: Sequence[StoredTensor]) -> None:
        self._path = path
        self._missing = {tensor.name: tensor for tensor in declared}
        header = _header(declared)
        self._offsets: dict[str, int] = {}
        end = len(header)
        for tensor in declared:
            self._offsets[tensor.name] = end
            end += tensor.num_bytes
        self._file = path.open("wb", buffering=0)
        self._put(header, 0)
        self._file.truncate(end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one whole tensor.

        Raises:
            ValueError: it is not as declared, or was written before.
        """
        given = StoredTensor(name, _NAMES[tensor.dtype], tuple(tensor.shape))
        expected = self._missing.pop(name, None)
        if given != expected:
            raise ValueError(f"declared {expected}, got {given}")
        self._put(_bytes(tensor), self._offsets[name])

    def write_pieces(self, name: str, pieces: Iterable[Tensor]) -> None:
        """Write one tensor from runs of its rows, in order.

        Raises:
            ValueError: together they are not as declared, or it was written before.
        """
        expected = self._missing.pop(name, None)
        if expected is None:
            raise ValueError(f"{name} is not declared, or was written before")
        done = 0
        for piece in pieces:
            data = _bytes(piece)
            if _NAMES[piece.dtype] != expected.dtype or done + len(data) > expected.num_bytes:
                raise ValueError(f"declared {expected}, got more than that or another dtype")
            self._put(data, self._offsets[name] + done)
            done += len(data)
        if done != expected.num_bytes:
            raise ValueError(f"declared {expected}, got only {done} bytes")

    def finish(self) -> str:
        """Close the file and return its SHA-256 (hex), read back from the disk.

        Raises:
            ValueError: a declared tensor was not written.
        """
        if self._missing:
            raise ValueError(f"declared {next(iter(self._missing))}, never written")
        self._file.close()
        digest = hashlib.sha256()
        with self._path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def _put(self, data: bytes | memoryview, offset: int) -> None:
        left = memoryview(data)
        while left:
            count = os.pwrite(self._file.fileno(), left, offset)
            left, offset = left[count:], offset + count


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _header(declared: Sequence[StoredTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in declared:
        end = offset + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    body = json.dumps(entries, separators=(",", ":")).encode()
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body
