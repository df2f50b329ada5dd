"""Int4 weights with a scale and a zero point a group."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from compression.packed.compiled import CompiledLinear, Operand
from compression.schemes import INT4_BLOCK, INT4_GROUPS
from compression.weights.codes import Codes

_NIBBLES = 4
"""In a word of 16 bits."""
_WORDS = INT4_BLOCK // _NIBBLES
"""Of a block."""


class Int4Linear(CompiledLinear):
    """int4 groups times inputs rounded to int16 a token: integer sums within a group.

    A block of 64 columns is 16 words: word i holds columns i, i + 16, i + 32 and i + 48, the first
    in its lowest bits. Columns are padded to whole blocks and groups, scales to whole vectors.
    """

    kernel = "int4x16"
    numerics = "W4A16"

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        rows, columns = codes.codes.shape
        if codes.zeros is None:
            raise ValueError("int4 codes need zero points")
        super().__init__(codes.label, rows, columns, bias)
        self.group_size = columns // codes.scales.shape[1]
        nibbles = functional.pad(codes.codes, (0, -columns % max(self.group_size, INT4_BLOCK)))
        parts = nibbles.to(torch.int16).view(rows, -1, _NIBBLES, _WORDS).unbind(2)
        words = parts[0] | (parts[1] << 4) | (parts[2] << 8) | (parts[3] << 12)
        padding = (0, -codes.scales.shape[1] % INT4_GROUPS)
        self.packed: Tensor
        self.scales: Tensor
        self.zeros: Tensor
        self.register_buffer("packed", words.flatten(1).contiguous())
        self.register_buffer(
            "scales", functional.pad(codes.scales.to(torch.bfloat16), padding).contiguous()
        )
        self.register_buffer(
            "zeros", functional.pad(codes.zeros, padding).to(torch.uint8).contiguous()
        )

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        words = (
            self.packed[rows].view(torch.uint8).view(-1, self.packed.shape[1] // _WORDS, _WORDS, 2)
        )
        halves = torch.stack([words & 0xF, words >> 4], dim=-1).flatten(-2)
        codes = halves.transpose(2, 3).reshape(len(words), -1)[:, : self.columns].to(dtype)
        grouped = codes.view(len(words), -1, self.group_size)
        count = grouped.shape[1]
        grouped.sub_(self.zeros[rows, :count].to(dtype).unsqueeze(2))
        grouped.mul_(self.scales[rows, :count].to(dtype).unsqueeze(2))
        return grouped.view(len(words), -1)

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
        columns = self.packed.shape[1] * _NIBBLES
        return Operand(
            f"int4-g{self.group_size}",
            self.packed,
            columns,
            peak=1,
            scales=self.scales,
            zeros=self.zeros,
            group_size=self.group_size,
        )
