"""Weights as the checkpoint has them."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.packed.compiled import CompiledLinear, Operand

_STEP = 32
"""Columns that the kernels take at a time."""


class Bf16Linear(CompiledLinear):
    """The unquantized layer: bf16 weights as the checkpoint has them, times float32."""

    kernel = "bf16xf32"
    numerics = "W16A32"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rows, columns = weight.shape
        super().__init__("none", rows, columns, bias)
        padded = functional.pad(weight.to(torch.bfloat16), (0, -columns % _STEP))
        self.weight = nn.Parameter(padded.contiguous(), requires_grad=False)

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        return self.weight[rows, : self.columns].to(dtype)

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        return type(self)(torch.ones(rows, self.columns, dtype=torch.bfloat16), None)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows of ``ids [m]`` as an embedding ``[m, columns]``."""
        return self.weight[ids, : self.columns].to(dtype)

    @property
    def operand(self) -> Operand:
        """Return the weight; its tensors are those of this layer."""
        return Operand("bf16", self.weight, self.weight.shape[1], peak=0)
