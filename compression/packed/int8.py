"""Int8 weights with one scale a row."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from compression.packed.compiled import CompiledLinear, Operand
from compression.schemes import INT8_BLOCK
from compression.weights.codes import Codes


class Int8Linear(CompiledLinear):
    """int8 rows times inputs rounded to int16 a token, summed as integers.

    Rows are padded with zeros to what the kernel takes at a time.
    """

    kernel = "int8x16"
    numerics = "W8A16"

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        rows, columns = codes.codes.shape
        super().__init__(codes.label, rows, columns, bias)
        packed = functional.pad(codes.codes, (0, -columns % INT8_BLOCK)).contiguous()
        self.packed: Tensor
        self.scales: Tensor
        self.register_buffer("packed", packed)
        self.register_buffer("scales", codes.scales.reshape(rows).contiguous())

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        codes = self.packed[rows, : self.columns].to(dtype)
        return codes.mul_(self.scales[rows].to(dtype).unsqueeze(1))

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        codes = torch.randint(0, 127, (rows, self.columns), dtype=torch.int8)
        scales = torch.full((rows, 1), 0.01, dtype=torch.bfloat16)
        return type(self)(Codes(codes=codes, scales=scales, zeros=None, bits=8), None)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows of ``ids [m]`` as an embedding ``[m, columns]``."""
        codes = self.packed[ids, : self.columns].to(dtype)
        return codes.mul_(self.scales[ids].to(dtype).unsqueeze(1))

    @property
    def operand(self) -> Operand:
        """Return the weight; its tensors are those of this layer."""
        return Operand("int8", self.packed, self.packed.shape[1], peak=1, scales=self.scales)
