"""Int8 weights with one scale a row."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from compression.packed.linear import PackedLinear
from compression.weights.codes import Codes


class Int8Linear(PackedLinear):
    """int8 rows on ``aten::_weight_int8pack_mm``.

    With bf16 activations that kernel reads past the end of a row whose length is no multiple of
    16 (a crash, or NaN), so such rows are padded with zeros.
    """

    kernel = "int8pack"
    numerics = "W8A16"

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        rows, columns = codes.codes.shape
        super().__init__(codes.label, rows, columns, bias)
        self._padding = -columns % 16
        packed = functional.pad(codes.codes, (0, self._padding)).contiguous()
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
        return type(self)(Codes(codes=codes, scales=scales, zeros=None), None)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows of ``ids [m]`` as an embedding ``[m, columns]``."""
        codes = self.packed[ids, : self.columns].to(dtype)
        return codes.mul_(self.scales[ids].to(dtype).unsqueeze(1))

    def _few_rows(self, x: Tensor) -> Tensor:
        if self._padding:
            x = functional.pad(x, (0, self._padding))
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.packed, self.scales)
        return y
