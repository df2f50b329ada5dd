"""Weights as the checkpoint has them."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.packed.linear import PackedLinear


class Bf16Linear(PackedLinear):
    """The unquantized layer: bf16 weights as the checkpoint has them."""

    kernel = "bf16"
    numerics = "W16A16"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rows, columns = weight.shape
        super().__init__("none", rows, columns, bias)
        self.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        return self.weight[rows].to(dtype)

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        return type(self)(torch.ones(rows, self.columns, dtype=torch.bfloat16), None)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows of ``ids [m]`` as an embedding ``[m, columns]``."""
        return self.weight[ids].to(dtype)

    def _few_rows(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)
