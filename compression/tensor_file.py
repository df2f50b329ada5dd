"""Safetensors files written tensor by tensor: the header first, then each tensor's bytes in turn.

The format is described in the safetensors README. The library itself writes only whole
dictionaries, which would hold a full shard in memory.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from torch import Tensor

from compression.plan import StoredTensor

_DTYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int8: "I8",
    }
)


class TensorFileWriter:
    """Writes one file whose tensors are declared beforehand and given in that order."""

    def __init__(self, path: Path, declared: Sequence[StoredTensor]) -> None:
        self._stream = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._expected = iter(declared)
        self._put(_header(declared))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor.

        Raises:
            ValueError: it is not the one declared next.
        """
        expected = next(self._expected, None)
        given = StoredTensor(name, _DTYPES[tensor.dtype], tuple(tensor.shape))
        if given != expected:
            raise ValueError(f"declared {expected}, got {given}")
        self._put(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> str:
        """Close the file and return its SHA-256 (hex).

        Raises:
            ValueError: a declared tensor was not written.
        """
        missing = next(self._expected, None)
        if missing is not None:
            raise ValueError(f"declared {missing.name}, never written")
        self._stream.close()
        return self._sha256.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._sha256.update(data)


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
