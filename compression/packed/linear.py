"""What all packed layers share: two ways to multiply, and the choice between them."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

DENSE_BLOCK_ELEMENTS = 4 * 1024 * 1024
"""Unpacked weights are made in blocks of this many elements, so that memory stays bounded."""
ROW_BLOCK = 64
"""Blocks of rows begin at multiples of this: whole blocks of every kernel's layout."""
NEVER = 1 << 30
"""The row count to set where the dense product shall not be taken."""


class PackedLinear(nn.Module, ABC):
    """``y = x Wᵀ + b`` with ``W [rows, columns]`` held in the form its kernel reads.

    From ``dense_from`` rows of inputs on it is multiplied densely, in ``dense_dtype``; ``is_timed``
    says that this row count comes from a clock, and so differs from load to load.
    """

    kernel: str
    """The name of the kernel for few rows, as reports show it."""
    numerics: str
    """The bits of weights and inputs whose products are summed: ``W4A16``."""

    def __init__(self, scheme: str, rows: int, columns: int, bias: Tensor | None) -> None:
        super().__init__()
        self.scheme = scheme
        self.rows = rows
        self.columns = columns
        self.dense_from = NEVER
        self.is_timed = False
        self.dense_dtype = torch.float32
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x [m, columns]`` (bf16 or f32) to ``[m, rows]`` of the same dtype."""
        few = x.shape[0] < self.dense_from
        y = self._few_rows(x.to(torch.bfloat16)).to(x.dtype) if few else self._many_rows(x)
        return y if self.bias is None else y + self.bias

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the live tensors."""
        held = [*self.buffers(), *self.parameters()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    @property
    def num_weights(self) -> int:
        """Return how many weights of the checkpoint this layer stands for, bias included."""
        return self.rows * self.columns + (0 if self.bias is None else self.rows)

    @abstractmethod
    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``.

        ``rows`` must begin at a multiple of :data:`ROW_BLOCK` and end at one, or at the end.
        """

    @abstractmethod
    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""

    @abstractmethod
    def _few_rows(self, x: Tensor) -> Tensor: ...

    def _many_rows(self, x: Tensor) -> Tensor:
        wide = x.to(self.dense_dtype)
        return self._dense_product(wide, DENSE_BLOCK_ELEMENTS).to(x.dtype)

    def _dense_product(self, x: Tensor, block_elements: int) -> Tensor:
        """Return ``x Wᵀ`` in the dtype of ``x``, the weight unpacked a block of rows at a time."""
        step = max(1, block_elements // self.columns // ROW_BLOCK) * ROW_BLOCK
        blocks = [
            functional.linear(x, self.unpack(slice(start, start + step), x.dtype))
            for start in range(0, self.rows, step)
        ]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
