"""Int4 weights with a scale and a zero point a group."""

from functools import cache
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from compression.packed.linear import ROW_BLOCK, PackedLinear
from compression.weights.codes import Codes


class Int4Linear(PackedLinear):
    """int4 groups on ``aten::_weight_int4pack_mm_for_cpu``.

    The kernel wants the zero point as a float offset: ``w = (code - 8) * scale + offset`` with
    ``offset = (8 - zero) * scale``, both in bf16. Rows are padded to whole blocks of its layout.
    """

    kernel = "int4pack"
    numerics = "W4A16"

    def __init__(self, codes: Codes, bias: Tensor | None) -> None:
        rows, columns = codes.codes.shape
        if codes.zeros is None:
            raise ValueError("int4 codes need zero points")
        super().__init__(codes.label, rows, columns, bias)
        self.group_size = columns // codes.scales.shape[1]
        padding = (0, 0, 0, -rows % ROW_BLOCK)
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

    def stand_in(self, rows: int) -> Self:
        """Return a layer on the same kernel, of the same width, with arbitrary weights."""
        groups = self.columns // self.group_size
        codes = Codes(
            codes=torch.randint(0, 16, (rows, self.columns), dtype=torch.int8),
            scales=torch.full((rows, groups), 0.01, dtype=torch.bfloat16),
            zeros=torch.full((rows, groups), 8, dtype=torch.int8),
        )
        return type(self)(codes, None)

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
    rows, columns = ROW_BLOCK, 32
    nibbles = torch.arange(rows * columns, dtype=torch.int32).reshape(rows, columns) * 7 // 3 % 16
    packed = _pack_int4(nibbles)
    for lanes in (32, 16):
        expected = nibbles.view(-1, 2, lanes, columns).permute(0, 3, 1, 2)
        bytes_ = packed.view(-1, columns, lanes)
        if torch.equal(torch.stack([bytes_ & 0xF, bytes_ >> 4], dim=2).to(torch.int32), expected):
            return lanes
    raise RuntimeError("the int4 kernel of this PyTorch build has an unknown layout")
