"""Int4 weights with a scale and a zero point a group."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from compression.kernels.int4_tile import CHUNK, CHUNK_BYTES
from compression.packed.compiled import CompiledLinear, Operand
from compression.schemes import INT4_ROWS
from compression.weights.codes import Codes

_HALF = CHUNK // 2


class Int4Linear(CompiledLinear):
    """int4 groups times inputs rounded to int16 a token: integer sums within a group.

    Rows are padded with zeros to whole tiles of 16. A tile is its chunks of eight columns, one
    after another: byte ``b`` of a chunk is of row ``b // 4``, its low nibble of column ``b % 4``
    and its high one of column ``4 + b % 4``. Scales and zero points are ``[tiles, groups, 16]``.
    """

    kernel = "int4x16"
    numerics = "W4A16"

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        rows, columns = codes.codes.shape
        if codes.zeros is None:
            raise ValueError("int4 codes need zero points")
        super().__init__(codes.label, rows, columns, bias)
        self.group_size = columns // codes.scales.shape[1]
        low, high = (
            _tiles(codes.codes.to(torch.uint8))
            .view(-1, INT4_ROWS, columns // CHUNK, 2, _HALF)
            .transpose(1, 2)
            .unbind(3)
        )
        self.packed: Tensor
        self.scales: Tensor
        self.zeros: Tensor
        self.register_buffer("packed", (low | (high << 4)).reshape(*low.shape[:2], CHUNK_BYTES))
        self.register_buffer("scales", _groups(codes.scales.to(torch.bfloat16)))
        self.register_buffer("zeros", _groups(codes.zeros.to(torch.uint8)))

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        tiles = slice(rows.start // INT4_ROWS, -(-rows.stop // INT4_ROWS))
        held = self.packed[tiles].view(-1, self.columns // CHUNK, INT4_ROWS, _HALF)
        codes = torch.stack([held & 0xF, held >> 4], dim=3).to(dtype).transpose(1, 2)
        grouped = codes.reshape(len(held), INT4_ROWS, -1, self.group_size)
        grouped.sub_(self.zeros[tiles].to(dtype).transpose(1, 2).unsqueeze(3))
        grouped.mul_(self.scales[tiles].to(dtype).transpose(1, 2).unsqueeze(3))
        return grouped.view(-1, self.columns)[: min(rows.stop, self.rows) - rows.start]

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        groups = self.columns // self.group_size
        codes = Codes(
            codes=torch.randint(0, 16, (rows, self.columns), dtype=torch.int8),
            scales=torch.full((rows, groups), 0.01, dtype=torch.bfloat16),
            zeros=torch.full((rows, groups), 8, dtype=torch.int8),
        )
        return type(self)(codes, None)

    @property
    def operand(self) -> Operand:
        """Return the weight; its tensors are those of this layer."""
        return Operand(
            "int4",
            self.packed,
            self.columns,
            peak=3,
            scales=self.scales,
            zeros=self.zeros,
            groups=self.scales.shape[1],
            tile=INT4_ROWS,
        )


def _tiles(matrix: Tensor) -> Tensor:
    """Return ``[rows, n]`` as ``[tiles, 16, n]``, zeros beyond its rows."""
    padded = functional.pad(matrix, (0, 0, 0, -len(matrix) % INT4_ROWS))
    return padded.view(-1, INT4_ROWS, matrix.shape[1])


def _groups(matrix: Tensor) -> Tensor:
    """Return ``[rows, groups]`` as ``[tiles, groups, 16]``."""
    return _tiles(matrix).transpose(1, 2).contiguous()
