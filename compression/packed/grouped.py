"""Weights of few bits with a scale and a zero point a group."""

from functools import reduce
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from compression.kernels.fields import PLANES
from compression.kernels.grouped_tile import CHUNK, NIBBLES_BYTES, PART, part_bytes
from compression.packed.compiled import CompiledLinear, Operand
from compression.schemes import GROUPED_ROWS
from compression.weights.codes import Codes

_HALF = CHUNK // 2
_FOURS = PART // _HALF


class GroupedLinear(CompiledLinear):
    """Groups of integers times inputs rounded to int16 a token: integer sums within a group.

    Rows are padded with zeros to whole tiles of 16. A tile is its parts of 32 columns, one after
    another, as :mod:`compression.kernels.grouped_tile` says. Scales and zero points are
    ``[tiles, groups, 16]``.
    """

    bits: ClassVar[int]

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        rows, columns = codes.codes.shape
        if codes.zeros is None or codes.bits != self.bits:
            raise ValueError(f"{codes.label} on the kernel of int{self.bits} with zero points")
        super().__init__(codes.label, rows, columns, bias)
        self.group_size = columns // codes.scales.shape[1]
        self.packed: Tensor
        self.scales: Tensor
        self.zeros: Tensor
        self.register_buffer("packed", _pack(_tiles(codes.codes.to(torch.uint8)), self.bits))
        self.register_buffer("scales", _groups(codes.scales.to(torch.bfloat16)))
        self.register_buffer("zeros", _groups(codes.zeros.to(torch.uint8)))

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        tiles = slice(rows.start // GROUPED_ROWS, -(-rows.stop // GROUPED_ROWS))
        codes = _unpack(self.packed[tiles], self.bits).to(dtype)
        grouped = codes.view(len(codes), GROUPED_ROWS, -1, self.group_size)
        grouped.sub_(self.zeros[tiles].to(dtype).transpose(1, 2).unsqueeze(3))
        grouped.mul_(self.scales[tiles].to(dtype).transpose(1, 2).unsqueeze(3))
        return grouped.view(-1, self.columns)[: min(rows.stop, self.rows) - rows.start]

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        groups = self.columns // self.group_size
        middle = 1 << (self.bits - 1)
        codes = Codes(
            codes=torch.randint(0, 2 * middle, (rows, self.columns), dtype=torch.int8),
            scales=torch.full((rows, groups), 0.01, dtype=torch.bfloat16),
            zeros=torch.full((rows, groups), middle, dtype=torch.int8),
            bits=self.bits,
        )
        return type(self)(codes, None)

    @property
    def operand(self) -> Operand:
        """Return the weight; its tensors are those of this layer."""
        return Operand(
            f"int{self.bits}",
            self.packed,
            self.columns,
            peak=PLANES,
            scales=self.scales,
            zeros=self.zeros,
            groups=self.scales.shape[1],
            tile=GROUPED_ROWS,
        )


class Int4Linear(GroupedLinear):
    """Nibbles."""

    bits: ClassVar[int] = 4
    kernel = "int4x16"
    numerics = "W4A16"


class Int5Linear(GroupedLinear):
    """Nibbles, and behind each 32 columns of a tile their fifth bits."""

    bits: ClassVar[int] = 5
    kernel = "int5x16"
    numerics = "W5A16"


def make_grouped_linear(codes: Codes, bias: Tensor | None) -> GroupedLinear:
    """Return the layer for the bits that codes have."""
    return Int5Linear(codes, bias) if codes.bits == Int5Linear.bits else Int4Linear(codes, bias)


def _pack(tiles: Tensor, bits: int) -> Tensor:
    """Return codes ``[tiles, 16, columns]`` as the kernel reads them, ``[tiles, parts, bytes]``."""
    count, _, columns = tiles.shape
    # Tiles, parts, fours of columns, rows, columns of a four.
    fours = tiles.view(count, GROUPED_ROWS, columns // PART, _FOURS, _HALF).permute(0, 2, 3, 1, 4)
    packed = torch.empty(count, columns // PART, part_bytes(bits), dtype=torch.uint8)
    low, high = fours[:, :, 0::2] & 0xF, fours[:, :, 1::2] << 4
    packed[:, :, :NIBBLES_BYTES] = (low | high).flatten(2)
    if bits > 4:
        fifths = [(fours[:, :, place] >> 4) << place for place in range(_FOURS)]
        packed[:, :, NIBBLES_BYTES:] = reduce(torch.bitwise_or, fifths).flatten(2)
    return packed


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Undo :func:`_pack`; uint8 ``[tiles, 16, columns]``."""
    count, parts = packed.shape[:2]
    shape = count, parts, -1, GROUPED_ROWS, _HALF
    lines = packed[:, :, :NIBBLES_BYTES].reshape(shape)
    fours = torch.stack([lines & 0xF, lines >> 4], dim=3).flatten(2, 3)
    if bits > 4:
        fifths = packed[:, :, NIBBLES_BYTES:].reshape(shape).squeeze(2)
        for place in range(_FOURS):
            fours[:, :, place] |= ((fifths >> place) & 1) << 4
    return fours.permute(0, 3, 1, 2, 4).reshape(count, GROUPED_ROWS, parts * PART)


def _tiles(matrix: Tensor) -> Tensor:
    """Return ``[rows, n]`` as ``[tiles, 16, n]``, zeros beyond its rows."""
    padded = functional.pad(matrix, (0, 0, 0, -len(matrix) % GROUPED_ROWS))
    return padded.view(-1, GROUPED_ROWS, matrix.shape[1])


def _groups(matrix: Tensor) -> Tensor:
    """Return ``[rows, groups]`` as ``[tiles, groups, 16]``."""
    return _tiles(matrix).transpose(1, 2).contiguous()
