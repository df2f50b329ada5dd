"""Linear layers that run packed weights on stock ATen kernels of the CPU.

A row count decides how: few rows stream the packed weight through a kernel that is limited by
memory, many rows unpack it block by block and multiply densely. Where one overtakes the other
depends on the processor and is measured (:mod:`compression.crossover`).
"""

from abc import ABC, abstractmethod
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.weights.codes import Codes

_DENSE_BLOCK_ELEMENTS = 4 * 1024 * 1024
"""Unpacked weights are made in blocks of this many elements, so that memory stays bounded."""
_INT4_ROW_BLOCK = 64
"""Rows in one whole block of the int4 kernel's layout on every processor."""


class PackedLinear(nn.Module, ABC):
    """``y = x Wᵀ + b`` with ``W [rows, columns]`` held in the form its kernel reads."""

    kernel: str
    """The name of the kernel for few rows, as reports show it."""

    def __init__(self, scheme: str, rows: int, columns: int, bias: Tensor | None) -> None:
        super().__init__()
        self.scheme = scheme
        self.rows = rows
        self.columns = columns
        self.dense_from = 16
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
        """Return the dense weight of a block of rows, ``[block, columns]``."""

    @abstractmethod
    def _few_rows(self, x: Tensor) -> Tensor: ...

    def _many_rows(self, x: Tensor) -> Tensor:
        wide = x.to(self.dense_dtype)
        step = max(1, _DENSE_BLOCK_ELEMENTS // self.columns // _INT4_ROW_BLOCK) * _INT4_ROW_BLOCK
        blocks = [
            functional.linear(wide, self.unpack(slice(start, start + step), self.dense_dtype))
            for start in range(0, self.rows, step)
        ]
        y = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
        return y.to(x.dtype)


class Bf16Linear(PackedLinear):
    """The unquantized layer: bf16 weights as the checkpoint has them."""

    kernel = "bf16"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rows, columns = weight.shape
        super().__init__("none", rows, columns, bias)
        self.weight = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``."""
        return self.weight[rows].to(dtype)

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows of ``ids [m]`` as an embedding ``[m, columns]``."""
        return self.weight[ids].to(dtype)

    def _few_rows(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class Int8Linear(PackedLinear):
    """int8 rows on ``aten::_weight_int8pack_mm``.

    With bf16 activations that kernel reads past the end of a row whose length is no multiple of
    16 (a crash, or NaN), so such rows are padded with zeros.
    """

    kernel = "int8pack"

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

    def embed(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows of ``ids [m]`` as an embedding ``[m, columns]``."""
        codes = self.packed[ids, : self.columns].to(dtype)
        return codes.mul_(self.scales[ids].to(dtype).unsqueeze(1))

    def _few_rows(self, x: Tensor) -> Tensor:
        if self._padding:
            x = functional.pad(x, (0, self._padding))
        y: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.packed, self.scales)
        return y


class Int4Linear(PackedLinear):
    """int4 groups on ``aten::_weight_int4pack_mm_for_cpu``.

    The kernel wants the zero point as a float offset: ``w = (code - 8) * scale + offset`` with
    ``offset = (8 - zero) * scale``, both in bf16. Rows are padded to whole blocks of its layout.
    """

    kernel = "int4pack"

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        rows, columns = codes.codes.shape
        if codes.zeros is None:
            raise ValueError("int4 codes need zero points")
        super().__init__(codes.label, rows, columns, bias)
        self.group_size = columns // codes.scales.shape[1]
        padding = (0, 0, 0, -rows % _INT4_ROW_BLOCK)
        nibbles = functional.pad(codes.codes.to(torch.int32), padding)
        scales = codes.scales.to(torch.float32)
        offsets = (8 - codes.zeros.to(torch.float32)) * scales
        pairs = torch.stack([scales, offsets], dim=-1).to(torch.bfloat16)
        pairs = functional.pad(pairs, (0, 0, *padding)).transpose(0, 1).contiguous()
        self.packed: Tensor
        self.scales_and_offsets: Tensor
        self.register_buffer("packed", _pack_int4(nibbles))
        self.register_buffer("scales_and_offsets", pairs)
        self._lanes = int4_lanes()

    def unpack(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Return the dense weight of a block of rows, ``[block, columns]``.

        ``rows`` must begin and end at a whole block of 64 rows, or at the end of the weight.
        """
        stop = min(rows.stop, self.rows)
        blocks = slice(rows.start // (2 * self._lanes), -(-stop // (2 * self._lanes)))
        packed = self.packed.view(-1, self.columns, self._lanes)[blocks].transpose(0, 1)
        pairs = torch.empty(*packed.shape[:2], 2, self._lanes, dtype=dtype)
        pairs[:, :, 0] = packed & 0xF
        pairs[:, :, 1] = packed >> 4
        grouped = pairs.view(self.columns // self.group_size, self.group_size, -1)
        last = rows.start + grouped.shape[2]
        scales, offsets = self.scales_and_offsets[:, None, rows.start : last].to(dtype).unbind(-1)
        grouped.sub_(8).mul_(scales).add_(offsets)
        return grouped.view(self.columns, -1)[:, : stop - rows.start].t()

    def _few_rows(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self.packed, self.group_size, self.scales_and_offsets
        )
        return y if y.shape[1] == self.rows else y[:, : self.rows]


def _pack_int4(nibbles: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.contiguous(), 1)
    return packed


@cache
def int4_lanes() -> int:
    """Return how many bytes of one column lie together in the kernel's packed layout.

    A block of ``2 * lanes`` rows holds, column by column, row ``i`` in the low half of byte ``i``
    and row ``i + lanes`` in the high half; ``lanes`` is 32 with AVX-512 and 16 with AVX2.

    Raises:
        RuntimeError: the layout on this processor is another one.
    """
    rows, columns = _INT4_ROW_BLOCK, 32
    nibbles = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns) * 7 // 3 % 16
    packed = _pack_int4(nibbles)
    for lanes in (32, 16):
        expected = nibbles.view(-1, 2, lanes, columns).permute(0, 3, 1, 2)
        bytes_ = packed.view(-1, columns, lanes)
        if torch.equal(torch.stack([bytes_ & 0xF, bytes_ >> 4], dim=2).to(torch.int32), expected):
            return lanes
    raise RuntimeError("the int4 kernel of this PyTorch build has an unknown layout")
