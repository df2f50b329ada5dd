"""Tensors of a checkpoint read one by one with plain reads, so that no page of a file stays mapped.

A memory-mapped file counts as memory of the process for as long as its pages are resident; a build
that walks through all of it would seem to hold all of it, and under a limit it would be killed.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import torch
from torch import Tensor

from compression.errors import CorruptCheckpoint
from compression.facts import CheckpointFacts, TensorFact

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U64": torch.uint64,
        "U32": torch.uint32,
        "U16": torch.uint16,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)
"""The safetensors names of torch's types."""


class TensorSource:
    """The open weight files of a checkpoint; a context manager."""

    def __init__(self, facts: CheckpointFacts) -> None:
        self._directory = facts.directory
        self._tensors = facts.tensors
        self._stack = ExitStack()
        self._files: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """Return a whole tensor.

        Raises:
            CorruptCheckpoint: the file cannot be read, or is shorter than it was.
        """
        fact = self._tensors[name]
        if fact.is_transposed:
            return self._read(fact, fact.offset, fact.shape[::-1]).t().contiguous()
        return self._read(fact, fact.offset, fact.shape)

    def rows(self, name: str, indices: Tensor) -> Tensor:
        """Return the rows (first dimension) with these int64 ``indices [n]``, and read no others.

        Of a tensor that is held as it is, and not as its transpose.

        Raises:
            CorruptCheckpoint: the file cannot be read, or is shorter than it was.
        """
        fact = self._tensors[name]
        rows, *rest = fact.shape
        row_bytes = fact.num_bytes // rows
        found = torch.empty(len(indices), *rest, dtype=DTYPES[fact.dtype])
        start = 0
        # Rows that follow one another are read at once.
        breaks = (indices.diff() != 1).nonzero().flatten() + 1
        for stop in [*breaks.tolist(), len(indices)]:
            offset = fact.offset + int(indices[start]) * row_bytes
            found[start:stop] = self._read(fact, offset, (stop - start, *rest))
            start = stop
        return found

    def pieces(self, name: str, num_bytes: int) -> Iterator[Tensor]:
        """Yield a tensor as runs of whole rows (first dimension) of about ``num_bytes`` each.

        A matrix that is held as its transpose comes whole.

        Raises:
            CorruptCheckpoint: the file cannot be read, or is shorter than it was.
        """
        fact = self._tensors[name]
        if fact.num_bytes <= num_bytes or len(fact.shape) < 2 or fact.is_transposed:
            yield self.read(name)
            return
        rows, *rest = fact.shape
        row_bytes = fact.num_bytes // rows
        step = max(1, num_bytes // row_bytes)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            yield self._read(fact, fact.offset + start * row_bytes, (count, *rest))

    def _read(self, fact: TensorFact, offset: int, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.empty(shape, dtype=DTYPES[fact.dtype])
        left = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            file = self._descriptor(fact.file)
            while left:
                count = os.preadv(file, [left], offset)
                if count == 0:
                    raise CorruptCheckpoint(
                        f"{fact.file!r} became shorter while it was read: fetch it again"
                    )
                left, offset = left[count:], offset + count
        except OSError as error:
            raise CorruptCheckpoint(
                f"cannot read {fact.file!r} ({error.strerror or error}): fetch it again"
            ) from None
        return tensor

    def _descriptor(self, file: str) -> int:
        if file not in self._files:
            path: Path = self._directory / file
            self._files[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, self._files[file])
        return self._files[file]


def require_finite(name: str, values: Tensor) -> None:
    """Refuse a tensor from which nothing can be computed.

    Raises:
        CorruptCheckpoint: it holds NaN or infinite values.
    """
    if values.is_floating_point() and not torch.isfinite(values).all():
        raise CorruptCheckpoint(
            f"{name!r} holds NaN or infinite values: fetch the checkpoint again"
        )
